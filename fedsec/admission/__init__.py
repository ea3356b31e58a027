"""Approved code only: which release of the federation's code a site may run, and whether a FAB and the installed packages are that release.

1. One signed manifest names everything: the FAB, each file in it, each file of the installed packages, version and period. A file that is
   swapped, added or deleted makes another set of files than the signed one.
2. The site says whose approvals count and how many it needs; nothing in the manifest does.
3. Nothing here unpacks or imports anything, reads a clock or reaches a network.
"""
