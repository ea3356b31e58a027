#!/bin/bash
# docs/deploy.md, "With systemd", all three hosts and four clients in one booted tree; then SIGKILL, the probe, a run. As root, inside.
cd /root; export SYSTEMD_PAGER=; F=/opt/fedsec/bin/fedsec
unit() { $F unit "$1" --users > "/etc/sysusers.d/$2.conf" && systemd-sysusers; install -d -o "$2" -g "$2" -m 0700 "/var/lib/$2"; $F unit "$1" --out /etc/systemd/system; systemctl daemon-reload; }
token() { sudo -u fedsec-ca $F ca token "$@" --ca /var/lib/fedsec-ca/ca; }
install -d /etc/sysusers.d

unit ca fedsec-ca
sudo -u fedsec-ca $F ca init hearts.example --address ca.hearts.example:9444 --ca /var/lib/fedsec-ca/ca
systemctl enable --now fedsec-ca; sleep 5
unit gateway fedsec-server
sudo -u fedsec-server $F server init --federation hearts.example --home /var/lib/fedsec-server
token --server main | sudo -u fedsec-server $F server enroll --token-file - --home /var/lib/fedsec-server
systemctl enable --now fedsec-gateway
token --admin ada | $F release enroll ada --token-file -
$F release build --federation hearts.example --version 1 && $F release sign release-1.json --identity ada --yes
install -o fedsec-server -m 0644 release-1.json /var/lib/fedsec-server/releases/
unit agent fedsec-client
for n in "" 8 9 10; do
    home=/var/lib/fedsec-client; [ -z "$n" ] || home=/srv/fedsec-client-$n
    install -d -o fedsec-client -g fedsec-client -m 0700 "$home"
    token --node "client-${n:-7}" --site basel | sudo -u fedsec-client $F client enroll - --server gw.hearts.example:9443 --approver ada --source mydata:load --home "$home"
    [ -z "$n" ] || $F unit agent --home "$home" > "/etc/systemd/system/fedsec-agent-$n.service"
    systemctl daemon-reload; systemctl enable --now "fedsec-agent${n:+-$n}"
done
$F unit renew-timer --out /etc/systemd/system; systemctl daemon-reload; systemctl enable --now fedsec-renew.timer; systemctl start fedsec-renew
sleep 30; systemctl status fedsec-ca fedsec-gateway fedsec-agent fedsec-renew

for s in fedsec-ca fedsec-gateway fedsec-agent; do
    old=$(systemctl show -p MainPID --value $s); kill -9 "$old"; from=$(date +%s.%N)
    for _ in $(seq 300); do
        new=$(systemctl show -p MainPID --value $s)
        [ "$new" != 0 ] && [ "$new" != "$old" ] && [ "$(systemctl is-active $s)" = active ] && break
        sleep 0.1
    done
    echo "$s: killed $old, active as $new after $(echo "$(date +%s.%N) $from" | awk '{print $1 - $2}') s"
done

while IFS=: read -r u own a b; do
    sed -e "s|^ExecStart=.*|ExecStart=/usr/bin/python3 /trial/probe.py $own $a $b|" -e 's/^Type=.*/Type=oneshot/' -e '/^Restart/d' "/etc/systemd/system/$u.service" > "/etc/systemd/system/probe-$u.service"
    systemctl daemon-reload; systemctl start "probe-$u"; echo "probe in $u: $(systemctl show -p Result --value "probe-$u")"
    journalctl -u "probe-$u" -o cat | grep '^{'
    systemd-analyze security "$u" | tail -1
done <<'LIST'
fedsec-ca:/var/lib/fedsec-ca/ca:/var/lib/fedsec-server:/var/lib/fedsec-client
fedsec-gateway:/var/lib/fedsec-server:/var/lib/fedsec-ca:/var/lib/fedsec-client
fedsec-agent:/var/lib/fedsec-client:/var/lib/fedsec-ca/ca/register.sqlite:/var/lib/fedsec-server/identity/key.pem
fedsec-renew:/var/lib/fedsec-client:/var/lib/fedsec-ca:/var/lib/fedsec-server
LIST
sudo -u fedsec-server $F run /trial/plan.toml --home /var/lib/fedsec-server --follow
