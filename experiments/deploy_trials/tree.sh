#!/bin/sh
# A Debian tree with systemd, and fedsec in /opt/fedsec; then boot it: tree.sh FOLDER WHEEL. As root; needs debootstrap and systemd-container.
set -eu
tree=$1 wheel=$2 here=$(dirname "$0")
debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,sudo,python3,python3-venv,python3-pip,ca-certificates,iproute2,procps bookworm "$tree"
mkdir "$tree/trial"
cp "$wheel" "$here/../../constraints.txt" "$here/probe.py" "$here/hosts.sh" "$here/plan.toml" "$tree/trial/"
chroot "$tree" python3 -m venv /opt/fedsec
chroot "$tree" sh -c '/opt/fedsec/bin/pip install "$(grep ^torch== /trial/constraints.txt)"'
chroot "$tree" sh -c '/opt/fedsec/bin/pip install -c /trial/constraints.txt /trial/*.whl'
cp "$here/records.py" "$tree/opt/fedsec/lib/python3.11/site-packages/mydata.py"
printf '127.0.0.1 localhost %s\n127.0.0.1 ca.hearts.example gw.hearts.example\n' "$(hostname)" > "$tree/etc/hosts"
exec systemd-nspawn -D "$tree" --machine=trial --register=no --keep-unit --private-network --boot
# A shell inside: nsenter -t $(pgrep -P PID_OF_NSPAWN) -m -u -i -n -p -C -- bash /trial/hosts.sh
