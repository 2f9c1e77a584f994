#!/bin/sh
# Check, install, build, verify, bench and report on this machine.
#
#   ./run.sh            again after any failure: steps that are done are not done again
#   ./run.sh --force    on a machine that the pack is not made for; TensorRT is left out there
#   ./run.sh --again    from the beginning
#
# Everything is made in work/: env/ (Python), bundle/, logs/, report.html. pip's own variables
# (PIP_INDEX_URL, PIP_NO_INDEX, PIP_FIND_LINKS …) say where packages come from, PYTHON names the
# interpreter, SSM_EXPORT_BENCH holds options of bench.
set -u
cd "$(dirname "$0")" || exit 1
PYTHON=${PYTHON:-python3}
unset PYTHONPATH PYTHONHOME
force=
for word in "$@"; do
    case $word in
    --force) force=--force ;;
    --again) rm -rf work ;;
    *) sed -n '2,11s/^# \{0,1\}//p' run.sh; exit 2 ;;
    esac
done

began=$(date +%s)
skipped=
skip() { echo "skipped    $1"; skipped="$skipped  skipped: $1
"; }
end() { # end PASSED|FAILED WHAT STATUS
    printf '%s' "$skipped"
    echo "$1  $(($(date +%s) - began)) s  $2"
    exit "$3"
}
trap 'echo; end FAILED "interrupted; run it again, it goes on where it was" 130' INT TERM HUP

# step NAME COMMAND…: run it once; its stamp is written when it is done, on disk for good.
step() {
    name=$1
    shift
    if [ "$(cat "work/done/$name" 2>/dev/null)" = "$key" ]; then
        echo "$name: done before"
        return 0
    fi
    rm -f "work/done/$name"
    echo "$name …"
    "$@" >"work/logs/$name.log" 2>&1
    status=$?
    if [ $status -ne 0 ]; then
        tail -n 15 "work/logs/$name.log" >&2
        return $status
    fi
    sync
    echo "$key" >"work/done/$name.part" && mv "work/done/$name.part" "work/done/$name"
}
must() {
    step "$@" || end FAILED "$1, see $PWD/work/logs/$1.log; mend it and run it again" 1
}

make_environment() {
    rm -rf work/env
    # TensorRT comes with JetPack as a package of the system; elsewhere nothing of it is wanted.
    "$PYTHON" -m venv ${SYSTEM_PACKAGES:+--system-site-packages} work/env || return 1
    set -- -r requirements.txt wheels/*.whl
    [ "$ENGINE" = tensorrt-rtx ] && set -- -r requirements-rtx.txt "$@"
    # The list is complete and pinned, so pip resolves nothing.
    work/env/bin/python -m pip install --disable-pip-version-check --no-input --no-deps "$@"
}
copy_bundle() {
    rm -rf work/bundle
    # Links where the disk has them: what is packed stays as it is, files are replaced whole.
    cp -al bundle work/bundle 2>/dev/null || { rm -rf work/bundle && cp -a bundle work/bundle; }
}
build_library() {
    cmake -S plugin/source -B work/plugin && cmake --build work/plugin --parallel 2
}
verb() { work/env/bin/ssm-export "$@"; }

command -v "$PYTHON" >/dev/null || end FAILED "there is no $PYTHON. Fix: sudo apt-get install python3 python3-venv" 3
"$PYTHON" check.py files || end FAILED "the pack is damaged" 1
mkdir -p work/done work/logs || end FAILED "work/ cannot be made in $PWD" 1
exec 9>work/lock
if command -v flock >/dev/null && ! flock -n 9; then
    end FAILED "another run.sh is at work here" 1
fi
"$PYTHON" check.py machine $force >work/machine.env.part || end FAILED "not on this machine" 3
mv work/machine.env.part work/machine.env
# ENGINE, RUNNER, LIBRARY, SYSTEM_PACKAGES, TARGET, LOWERING, NO_ENGINE, PACK
. work/machine.env
key=$(cksum <work/machine.env)
[ -f work/env/bin/ssm-export ] || rm -f work/done/environment
[ -f work/bundle/manifest.json ] || rm -f work/done/bundle

must environment make_environment
must bundle copy_bundle
must doctor verb doctor
if [ "$ENGINE" = none ]; then
    skip "the engine: $NO_ENGINE"
else
    if [ "$LIBRARY" = build ]; then
        if step library build_library; then
            LIBRARY=$PWD/work/plugin/libssm_export_plugins.so
        else
            skip "plugins: their library could not be built here, see work/logs/library.log"
            LIBRARY= LOWERING=native
        fi
    fi
    [ -n "$LIBRARY" ] && export SSM_EXPORT_PLUGIN_LIBRARY="$LIBRARY"
    must build verb build work/bundle --target "$TARGET" --engine "$ENGINE" --lowering "$LOWERING"
fi
must verify verb verify work/bundle --runner "$RUNNER"
# shellcheck disable=SC2086  # several options
must bench verb bench work/bundle --runner "$RUNNER" ${SSM_EXPORT_BENCH:-}
must report verb report work/bundle -o work/report.html
cat work/logs/bench.log
echo "report: $PWD/work/report.html"
echo "use it: work/env/bin/ssm-export generate work/bundle PROMPT --runner $RUNNER"
end PASSED "pack $PACK with $RUNNER" 0
