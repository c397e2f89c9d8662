#!/bin/sh
# Put Prometheus, Alertmanager and their checkers into FOLDER/usr/bin: those of PATH, else those of this machine's own
# Debian packages, which are unpacked there and not installed.  No service is started.
#
#   ops/tools.sh FOLDER
set -eu

folder=${1:?usage: ops/tools.sh FOLDER}
# Debian's Alertmanager reads its templates from here and nowhere else.
templates=/usr/share/prometheus/alertmanager

missing() {
    for program in prometheus promtool prometheus-alertmanager amtool; do
        [ -x "$folder/usr/bin/$program" ] || echo "$program"
    done
    [ ! -d "$folder$templates" ] || [ -e "$templates/default.tmpl" ] || echo "$templates/default.tmpl"
}

link() {
    mkdir -p "$folder/usr/bin"
    for program in prometheus promtool prometheus-alertmanager amtool; do
        # Outside Debian Alertmanager's program has a shorter name.
        found=$(command -v "$program" || command -v "${program#prometheus-}" || true)
        [ -z "$found" ] || ln -sf "$found" "$folder/usr/bin/$program"
    done
}

download() {
    apt-get download -qq -o APT::Sandbox::User= prometheus prometheus-alertmanager >/dev/null 2>&1
}

unpack() (
    { command -v apt-get && command -v dpkg-deb; } >/dev/null || exit 1
    echo "unpacking prometheus and prometheus-alertmanager into $folder"
    mkdir -p "$folder/packages"
    cd "$folder/packages"
    # A new machine has no list of packages yet; to get one takes root.
    download || { apt-get update -qq >/dev/null 2>&1 && download; } || exit 1
    for package in *.deb; do
        dpkg-deb --extract "$package" ..
    done
    rm -- *.deb
    [ -e "$templates/default.tmpl" ] || { mkdir -p "$templates" && cp "..$templates"/*.tmpl "$templates"; }
)

[ -n "$(missing)" ] || exit 0
link
[ -n "$(missing)" ] || exit 0
unpack || true
left=$(missing | tr '\n' ' ')
[ -z "$left" ] || {
    echo "ops/tools.sh: missing ${left% }: install prometheus and alertmanager, or run this as root on Debian" >&2
    exit 1
}
