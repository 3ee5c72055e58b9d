-- batch.write
with guard as materialized (
    select workos.check_client($1) as is_ours, workos.lock_unchanged($2, $3) as is_locked
),
seen as materialized (
    select seen.*
    from guard
    cross join unnest(
        $4::text[], $5::bool[], $6::text[], $7::bool[], $8::text[], $9::text[], $10::text[], $11::text[],
        $12::text[], $13::jsonb[], $14::timestamptz[], $15::text[], $16::timestamptz[], $17::timestamptz[],
        $18::jsonb[], $19::timestamptz[], $20::text[]
    ) as seen (
        id, is_new, email, email_verified, first_name, last_name, name, profile_picture_url,
        external_id, metadata, last_sign_in_at, locale, created_at, updated_at,
        extra, observed_at, observation
    )
),
inserted as (
    insert into workos.user_records (
        id, email, email_verified, first_name, last_name, name, profile_picture_url, external_id, metadata,
        last_sign_in_at, locale, created_at, updated_at, synced_extra, synced_observed_at,
        synced_observation_id, synced_at, synced_version_at
    )
    select
        id, email, email_verified, first_name, last_name, name, profile_picture_url, external_id, metadata,
        last_sign_in_at, locale, created_at, updated_at, extra, observed_at,
        observation, now(), clock_timestamp()
    from seen
    where is_new
    on conflict (id) do nothing
    returning id, last_sign_in_at
),
updated as (
    update workos.user_records as stored
    set
        email = seen.email,
        email_verified = seen.email_verified,
        first_name = seen.first_name,
        last_name = seen.last_name,
        name = seen.name,
        profile_picture_url = seen.profile_picture_url,
        external_id = seen.external_id,
        metadata = seen.metadata,
        last_sign_in_at = seen.last_sign_in_at,
        locale = seen.locale,
        created_at = seen.created_at,
        updated_at = seen.updated_at,
        synced_extra = seen.extra,
        synced_observed_at = seen.observed_at,
        synced_observation_id = seen.observation,
        synced_at = now(),
        synced_version_at = case
            when not $21
                and (stored.updated_at, stored.synced_observed_at, stored.synced_observation_id)
                    = (seen.updated_at, seen.observed_at, seen.observation)
            then stored.synced_version_at
            -- Not now(), because the transaction may have waited for the lock of the row after its start.
            else clock_timestamp()
        end
    from seen
    where
        not seen.is_new
        and stored.id = seen.id
        -- Bounds the join to these rows, also with a plan that was made while the table was small.
        and stored.id = any(array(select id from seen where not is_new))
),
recorded as (
    insert into workos.events (id, type, user_id, created_at, payload, outcome, reason, webhook_at, catch_up_at)
    select
        id,
        type,
        user_id,
        created_at,
        payload,
        outcome,
        reason,
        case when $22 = 'webhook' then now() end,
        case when $22 = 'catch_up' then now() end
    from guard
    cross join unnest(
        $23::text[], $24::text[], $25::text[], $26::timestamptz[], $27::bytea[], $28::text[], $29::text[]
    ) as received (id, type, user_id, created_at, payload, outcome, reason)
    on conflict (id) do update
    set
        webhook_at = coalesce(events.webhook_at, excluded.webhook_at),
        catch_up_at = coalesce(events.catch_up_at, excluded.catch_up_at)
    -- A channel that has delivered the event before changes nothing.
    where
        (events.webhook_at is null and excluded.webhook_at is not null)
        or (events.catch_up_at is null and excluded.catch_up_at is not null)
    returning id, (xmax = 0) as is_new
),
writing as materialized (
    -- The lock is taken before any position is taken from the sequence: see workos.feed_head().
    select pg_advisory_xact_lock_shared($30, ((last_value - (not is_called)::int4) & 2147483647)::int4)
    from guard
    cross join workos.changes_position
    where cardinality($31::text[]) > 0
),
changed as (
    insert into workos.changes (position, kind, user_id, object_id, changed, event_id, event_type, origin)
    select
        nextval('workos.changes_position'), kind, user_id, object_id, changed, event_id, event_type, origin
    from writing
    cross join unnest(
        $31::text[], $32::text[], $33::jsonb[], $34::text[], $35::text[], $36::text[], $37::bool[], $38::text[]
    ) as news (kind, user_id, changed, event_id, event_type, origin, only_if_new, object_id)
    where
        not only_if_new
        or event_id in (select id from recorded where is_new)
)
select array(select id from recorded where is_new) as "new!"
from guard
cross join lateral workos.confirm_inserted(
    $39, array(select id from inserted), array(select last_sign_in_at from inserted)
) as is_confirmed
