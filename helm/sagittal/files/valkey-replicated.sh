# Starts one Valkey, or the Sentinel beside it, of a group with replicas: `sh valkey-replicated.sh valkey|sentinel`.
# Both keep their configuration on the volume, because a failover changes it: after a restart of the whole group, each knows
# which server was the primary. The chart's own settings take effect at each start.
# Needs NAME (of this pod), FIRST (the pod that begins as the primary), DOMAIN (of the pods), VALKEY_PASSWORD and QUORUM.
set -eu
umask 077
DATA=${DATA:-/data} SETTINGS=${SETTINGS:-/etc/valkey/valkey.conf}

# replace FILE DIRECTIVE LINES: replaces all lines that begin with the directive.
replace() {
  { grep -v "^$2 " "$1" || true; } > "$1.new"
  printf '%s\n' "$3" >> "$1.new"
  mv "$1.new" "$1"
}

case "$1" in
  valkey)
    state=$DATA/replication.conf
    if [ ! -f "$state" ]; then
      if [ "$NAME" = "$FIRST" ]; then : > "$state"; else echo "replicaof $FIRST.$DOMAIN 6379" > "$state"; fi
    fi
    grep '^replicaof ' "$state" > "$state.new" || true # all else is the chart's to say
    { cat "$state.new" "$SETTINGS"
      printf 'requirepass "%s"\nmasterauth "%s"\n' "$VALKEY_PASSWORD" "$VALKEY_PASSWORD"
      printf 'replica-announce-ip %s\n' "$NAME.$DOMAIN"; } > "$state"
    rm "$state.new"
    exec valkey-server "$state"
    ;;
  sentinel)
    state=$DATA/sentinel.conf
    [ -f "$state" ] || printf '%s\n' 'port 26379' 'protected-mode no' "dir $DATA" 'sentinel resolve-hostnames yes' \
      'sentinel announce-hostnames yes' "sentinel monitor sagittal $FIRST.$DOMAIN 6379 $QUORUM" \
      'sentinel down-after-milliseconds sagittal 5000' 'sentinel failover-timeout sagittal 15000' > "$state"
    replace "$state" 'sentinel auth-pass' "sentinel auth-pass sagittal $VALKEY_PASSWORD"
    replace "$state" 'sentinel announce-ip' "sentinel announce-ip $NAME.$DOMAIN"
    exec valkey-server "$state" --sentinel
    ;;
esac
