-- Revoked sessions.
set local lock_timeout = '2s';

-- Sessions that WorkOS has revoked. A token of such a session is refused from the commit of the event on. The row is deleted after
-- 30 days, because no access token is valid for longer. The IP address and the user agent of a session are not stored anywhere.
create table workos.revoked_sessions (
    -- WorkOS's ID of the session: the token's `sid`.
    id         text collate "C" primary key,
    -- The session's user. The deletion of the user ends all sessions, and deletes these rows.
    user_id    text collate "C",
    -- When the revocation was stored, by this database's clock.
    revoked_at timestamptz not null default now()
);

create index revoked_sessions_revoked_at on workos.revoked_sessions (revoked_at);

create index revoked_sessions_user_id on workos.revoked_sessions (user_id) where user_id is not null;

comment on table workos.revoked_sessions is 'Sessions that WorkOS has revoked within the last 30 days; their tokens are refused';
