-- Sign-ins that sessions have told of, where that is asked for: WorkOS moves last_sign_in_at late, and tells nobody.
set local lock_timeout = '5s';

-- Apart from the users, because a session may be heard of before its user is. A user's deletion takes it away.
create table workos.sign_ins (
    user_id text collate "C" primary key,
    -- The latest session that was nobody's impersonation.
    at      timestamptz not null
);

comment on table workos.sign_ins is 'Latest sign-in by session.created events (AUTHKIT_SYNC_SESSION_SIGN_INS)';
