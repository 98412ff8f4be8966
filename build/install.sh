#!/bin/sh
# Installs the appliance on a Debian 12 box that has never seen the internet. Needs what a bare Debian has.
# Safe to run again: what is there and right stays as it is.
set -eu
umask 022
# What changes the meaning of the commands below.
unset CDPATH TAR_OPTIONS GZIP
# `su` leaves those of administrators out.
PATH=$PATH:/usr/sbin:/sbin

ROOT=
DRY_RUN=no
START=yes
UNINSTALL=no
PURGE=no
UNITS="appliance.socket appliance.service appliance-backup.timer appliance-verify.timer"
STARTED="appliance-backup.service appliance-verify.service"
PROGRAM=/opt/appliance/current/appliance
HOME_OF_USER=/var/lib/appliance
LOCKED=no

usage() {
    cat <<'TEXT'
Usage: ./install.sh [OPTION]...

Checks the archive and this machine, installs the appliance under /opt/appliance, and starts it.

  --dry-run      check everything, change nothing
  --no-start     install, but start nothing
  --uninstall    remove the program; the data (/var/lib/appliance) and the configuration (/etc/appliance) stay
  --purge-data   with --uninstall: remove data and configuration too, for good
  --root DIR     install below DIR instead of /, without systemd
  -h, --help     show this
TEXT
}

say() { printf '%s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) DRY_RUN=yes ;;
        --no-start) START=no ;;
        --uninstall) UNINSTALL=yes ;;
        --purge-data) PURGE=yes ;;
        --root) [ -n "${2:-}" ] || fail "--root needs a folder"; ROOT=${2%/}; shift ;;
        -h|--help) usage; exit 0 ;;
        *) usage >&2; fail "unknown option $1" ;;
    esac
    shift
done
if [ "$PURGE" = yes ] && [ "$UNINSTALL" = no ]; then fail "--purge-data goes with --uninstall"; fi
case $ROOT in ''|/*) ;; *) ROOT=$(pwd)/$ROOT ;; esac

OPT=$ROOT/opt/appliance
ETC=$ROOT/etc/appliance
DATA=$ROOT/var/lib/appliance
BIN=$ROOT/usr/local/bin/appliance
SYSTEMD=$ROOT/etc/systemd/system
HERE=$(cd "$(dirname "$0")" && pwd)
WORK=

# On a running system, not below --root and not while an image is built.
on_systemd() { [ -z "$ROOT" ] && [ -d /run/systemd/system ]; }

# The field of that number in the service user's line of the user database; nothing without one.
account() {
    if [ -z "$ROOT" ]; then getent passwd appliance; else grep '^appliance:' "$ROOT/etc/passwd" 2>/dev/null; fi |
        head -n 1 | cut -d : -f "$1"
}

# Whether the link to the program is missing or ours.
link_is_ours() {
    if [ -L "$BIN" ]; then [ "$(readlink "$BIN")" = "$PROGRAM" ]; else [ ! -e "$BIN" ]; fi
}

# writable FOLDER: whether it, or the folder above it that is there, takes new files.
writable() {
    folder=$1
    while [ ! -e "$folder" ]; do
        folder=${folder%/*}
        folder=${folder:-/}
    done
    [ -d "$folder" ] && [ -w "$folder" ]
}

cleanup() {
    if [ -n "$WORK" ]; then rm -rf "$WORK"; fi
    # What others of this kind have unpacked is theirs.
    if [ "$LOCKED" = yes ]; then rm -rf "$OPT"/releases/.staging-install.* "$DATA"/.install.* 2>/dev/null || :; fi
    # A dry run leaves no empty folders behind.
    if [ "$DRY_RUN" = yes ]; then rmdir "$OPT/releases" "$OPT" 2>/dev/null || :; fi
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# program TREE ARGUMENTS...: run the appliance of a tree, with nothing of this environment but the places.
program() {
    tree=$1
    shift
    set -- "$tree/appliance" "$@"
    if [ -n "$ROOT" ]; then
        set -- "APPLIANCE_RELEASES_DIR=$OPT" "APPLIANCE_DATA_DIR=$DATA" "$@"
    fi
    env -i PATH="$PATH" LANG=C.UTF-8 HOME=/ APPLIANCE_CONFIG="$CONFIG" APPLIANCE_TRUST_DIR="$TRUST" "$@"
}

uninstall() {
    if on_systemd; then
        for unit in $UNITS; do systemctl disable --quiet --now "$unit" 2>/dev/null || :; done
        # shellcheck disable=SC2086 # several units
        systemctl stop $STARTED 2>/dev/null || :
    fi
    for unit in $UNITS $STARTED; do rm -f "$SYSTEMD/$unit"; done
    # A later release may have brought further ones.
    for unit in "$OPT"/current/systemd/*.service "$OPT"/current/systemd/*.socket "$OPT"/current/systemd/*.timer; do
        rm -f "$SYSTEMD/${unit##*/}"
    done
    rm -f "$SYSTEMD/appliance.service.d/keeper.conf"
    rmdir "$SYSTEMD/appliance.service.d" 2>/dev/null || :
    rm -f "$ROOT/etc/sysusers.d/appliance.conf" "$ROOT/etc/tmpfiles.d/appliance.conf"
    if link_is_ours; then rm -f "$BIN"; fi
    rm -rf "$OPT"
    if on_systemd; then systemctl daemon-reload; fi
    if [ "$PURGE" = yes ]; then
        # Restores put the data of before aside, with everybody's keys in them.
        rm -rf "$DATA" "$ETC" "$DATA".before-restore-* "${DATA%/*}"/.appliance.discarded-* "${DATA%/*}"/.appliance.restoring-*
        if [ -z "$ROOT" ] && [ "$(account 6)" = "$HOME_OF_USER" ]; then userdel appliance 2>/dev/null || :; fi
        say "The appliance, its data and its configuration are removed."
    else
        say "The appliance is removed. Its data are kept in $DATA, its configuration in $ETC."
    fi
}

if [ -z "$ROOT" ] && [ "$(id -u)" != 0 ]; then fail "run this as root (sudo ./install.sh)"; fi
if [ "$UNINSTALL" = yes ]; then
    if [ "$DRY_RUN" = yes ]; then
        say "Would remove $OPT, its units and $BIN."
        [ "$PURGE" = no ] || say "Would remove $DATA and $ETC too."
        exit 0
    fi
    uninstall
    exit 0
fi

# ---- the archive -------------------------------------------------------------------------------------------
cd "$HERE"
for command in tar gzip sha256sum df flock; do
    command -v "$command" >/dev/null || fail "$command is missing; a bare Debian 12 has it"
done
[ -f SHA256SUMS ] || fail "SHA256SUMS is missing: unpack the whole archive, and run install.sh where it lies"
say "Checking the archive."
sha256sum --check --strict --quiet SHA256SUMS ||
    fail "the archive is damaged: copy it again, and compare its SHA-256 with the printed one"
# listed PATTERN: the files of the archive that match; others lie here by accident and are not touched.
listed() {
    while read -r _ name; do
        # shellcheck disable=SC2254 # a pattern
        case $name in $1) printf '%s\n' "$name" ;; esac
    done < SHA256SUMS
}
BUNDLE=$(listed 'appliance-*.tar.zst')
case $BUNDLE in ''|*/*) fail "the archive holds no system bundle" ;; esac

# ---- this machine ------------------------------------------------------------------------------------------
say "Checking this machine."
[ "$(uname -s)" = Linux ] || fail "this is for Linux"
[ "$(uname -m)" = x86_64 ] || fail "this release is for x86_64 processors; this machine is $(uname -m)"
if [ -z "$ROOT" ] && [ "$START" = yes ] && [ "$DRY_RUN" = no ] && ! on_systemd; then
    fail "systemd does not run here; with --no-start the appliance is installed all the same"
fi

CONFIG=$ETC/appliance.toml
TRUST=$ETC/trust.d
# Human beings have numbers from 1000 on; a service user that was made before, whatever its home, will do. On a box that
# is installed already, the data are that account's.
if [ ! -e "$OPT/current" ] && [ "$(account 3)" ] && [ "$(account 3)" -ge 1000 ] && [ "$(account 6)" != "$HOME_OF_USER" ]; then
    fail "'appliance' is somebody's own account here ($(account 6)), which would come to own the data: rename it (usermod -l)"
fi
link_is_ours || fail "$BIN is another program: move it away"
for place in "$OPT" "$ETC" "$DATA" "$SYSTEMD" "${BIN%/*}"; do
    writable "$place" || fail "$place cannot be written: $folder is no folder, or on a disk that is mounted read-only"
done

mkdir -p "$OPT/releases"
exec 9< "$OPT/releases"
flock -n 9 || fail "another install.sh is at work here: wait until it is done"
LOCKED=yes
# The tree packs down to a third; with a little to spare.
NEEDED=$(( $(wc -c < tree.tar.gz) * 4 / 1024 + 262144 ))
FREE=$(df -Pk "$OPT" | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)
[ "$FREE" -ge "$NEEDED" ] ||
    fail "$(( NEEDED / 1024 )) MiB must be free on the disk of $OPT; $(( FREE / 1024 )) MiB are"
rm -rf "$OPT"/releases/.staging-install.*
STAGED=$OPT/releases/.staging-install.$$
mkdir "$STAGED"
gzip -dc tree.tar.gz | tar -x --no-same-owner -f - -C "$STAGED" || fail "cannot unpack the program"
WORK=$(mktemp -d "${TMPDIR:-/tmp}/appliance-install.XXXXXX")

# The keys of this archive count from here on: that it is the right archive was checked on the connected side, or
# by its printed SHA-256.
mkdir "$WORK/trust"
for key in "$TRUST"/*.pub; do if [ -f "$key" ]; then cp "$key" "$WORK/trust/"; fi; done
for key in $(listed 'trust/*.pub'); do
    name=${key#trust/}
    if [ -f "$TRUST/$name" ] && ! cmp -s "$key" "$TRUST/$name"; then
        fail "$TRUST/$name is another key than the archive's: compare the two, and move one away"
    fi
    cp "$key" "$WORK/trust/$name"
done
TRUST=$WORK/trust
[ -f "$CONFIG" ] || CONFIG=$STAGED/systemd/appliance.toml

program "$STAGED" version >/dev/null ||
    fail "the program does not run on this machine: Debian 12 or newer is needed ($(getconf GNU_LIBC_VERSION 2>/dev/null || :)), and programs must be allowed on the disk of $OPT (no noexec)"
if [ ! -e "$OPT/current" ]; then
    program "$STAGED" doctor > "$WORK/doctor" 2>&1 ||
        { cat "$WORK/doctor" >&2; fail "this machine is not fit; what to do stands above"; }
fi
say "Checking signatures."
program "$STAGED" upgrade --install "$STAGED" --dry-run "$BUNDLE" >/dev/null ||
    fail "the release cannot be installed here; the reason stands above"
for pack in $(listed 'packs/*.tar.zst'); do
    program "$STAGED" pack verify "$pack" >/dev/null || fail "$pack cannot be installed; the reason stands above"
done
if [ "$DRY_RUN" = yes ]; then
    say "All is well: ./install.sh would install $BUNDLE and $(listed 'packs/*.tar.zst' | wc -l | tr -d ' ') model packs."
    exit 0
fi

# ---- the box -----------------------------------------------------------------------------------------------
say "Installing."
mkdir -p "$ROOT/etc/sysusers.d" "$ROOT/etc/tmpfiles.d" "$SYSTEMD/appliance.service.d" "${BIN%/*}"
cp "$STAGED/systemd/appliance.sysusers.conf" "$ROOT/etc/sysusers.d/appliance.conf"
cp "$STAGED/systemd/appliance.tmpfiles.conf" "$ROOT/etc/tmpfiles.d/appliance.conf"
if [ -z "$ROOT" ]; then
    systemd-sysusers /etc/sysusers.d/appliance.conf
    systemd-tmpfiles --create /etc/tmpfiles.d/appliance.conf
else
    mkdir -p "$ETC/trust.d" "$DATA"
    chmod 0700 "$DATA"
fi
for key in "$WORK"/trust/*.pub; do
    # Whatever the umask was where the archive was unpacked: the service's user reads them.
    if [ -f "$key" ]; then install -m 0644 "$key" "$ETC/trust.d/"; fi
done
TRUST=$ETC/trust.d
CONFIG=$ETC/appliance.toml
[ -f "$CONFIG" ] || cp "$STAGED/systemd/appliance.toml" "$CONFIG"

DONE=$(program "$STAGED" upgrade --install "$STAGED" "$BUNDLE") || fail "the release cannot be installed; the reason stands above"
case $DONE in
    installed) ;;
    present) say "This release is installed already." ;;
    upgrade)
        say "Another release is installed: upgrading it."
        program "$OPT/current" upgrade "$BUNDLE" || fail "the box goes on with the release that it had; the reason stands above"
        ;;
    *) fail "the program answered '$DONE'" ;;
esac

ln -sfn "$PROGRAM" "$BIN"
for unit in "$OPT"/current/systemd/*.service "$OPT"/current/systemd/*.socket "$OPT"/current/systemd/*.timer; do
    cp "$unit" "$SYSTEMD/"
done
# What was cut off is taken up by the program that is known to work, not by the one that is on trial.
cat > "$SYSTEMD/appliance.service.d/keeper.conf" <<'UNIT'
[Service]
ExecStartPre=
ExecStartPre=-+/opt/appliance/keeper/appliance upgrade --resume
UNIT
if on_systemd; then systemctl daemon-reload; fi

# The packs are read by the service's user, who may not look everywhere: one after the other through its own folder.
BROKEN=
for pack in $(listed 'packs/*.tar.zst'); do
    name=${pack#packs/}
    say "Installing the model pack ${name%.tar.zst}."
    folder=$DATA/.install.$$
    rm -rf "$folder"
    mkdir -m 0700 "$folder"
    cp "$pack" "$pack.minisig" "$folder/"
    if [ -z "$ROOT" ]; then chown -R appliance:appliance "$folder"; fi
    program "$OPT/current" pack install "$folder/$name" >/dev/null || BROKEN="$BROKEN $name"
    rm -rf "$folder"
done

if [ -z "$ROOT" ]; then
    if on_systemd && [ "$START" = yes ]; then
        say "Starting; models are being loaded."
        # shellcheck disable=SC2086 # several units
        systemctl enable --quiet $UNITS
        # shellcheck disable=SC2086
        systemctl start $UNITS || fail "the service does not start: journalctl -u appliance says why"
    else
        # shellcheck disable=SC2086
        systemctl enable --quiet $UNITS
    fi
fi

say ""
say "The appliance is installed$( [ -n "$BROKEN" ] && printf ', but not these packs:%s' "$BROKEN" )."
say "  set-up code:   journalctl -u appliance -b   (shown on the console too; 30 minutes; a new one: appliance setup --new-code)"
say "  fingerprint:   appliance tls fingerprint    (compare it when a client first connects)"
say "  configuration: $ETC/appliance.toml, then: systemctl restart appliance"
say "  health:        appliance doctor"
say "  manual:        /opt/appliance/current/docs (operate.md, first-hour.md, configuration.md, ...)"
[ -z "$BROKEN" ] || exit 1
