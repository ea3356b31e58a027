"""Measuring privacy: attacks with a known answer, and what their success says about a claimed epsilon.

One question per file:

==============  =====================================================================================
``results``     what an audit found, as plain data
``one_run``     from guesses about many canaries of one run to a lower bound of epsilon
``gaussian``    epsilon of two Gaussians, and the estimate from canaries' scores
``membership``  how well scores tell members from others: ROC, AUC, true positives at few false alarms
``lira``        likelihood ratios with shadow models
``canaries``    gradient canaries that go through the real clipping, sampling and noise
``scores``      what an adversary computes from the updates, the sum or the sketches that it sees
``inversion``   pictures from gradients
==============  =====================================================================================

Runs of a whole federation with canaries in it are in :mod:`fedsec.sim.audit`.
"""
