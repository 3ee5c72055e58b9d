-- Erasure that is too large for the transaction of a deletion, and what a complete scan confirms.
set local lock_timeout = '5s';

-- Deleted users of whom personal data is still stored. A deletion erases a bounded number of rows in its own transaction and
-- enters the user here in the same transaction if more are left; housekeeping erases the rest in batches. A user whose
-- erasure is complete has no row.
create table workos.erasures (
    user_id      text collate "C" primary key,
    -- When the user was deleted here: the age of the oldest row is the delay of erasure.
    requested_at timestamptz not null default now()
);

-- The oldest first.
create index erasures_requested_at on workos.erasures (requested_at);

comment on table workos.erasures is 'Deleted users of whom personal data is still to be erased; empty when every erasure is complete';

alter table workos.walks
    -- When the walk under way began, by this database's clock; started_at is WorkOS's clock.
    add column began_here timestamptz,
    -- A complete scan of WorkOS's list has confirmed every live row whose version was last written before confirmed_before (this
    -- database's clock): the row says what WorkOS said at confirmed_at (WorkOS's clock). So a scan writes only what differs.
    add column confirmed_at timestamptz,
    add column confirmed_before timestamptz;

alter table workos.user_records
    -- When the version was last written, by this database's clock; null: before this column existed, or a tombstone.
    add column synced_version_at timestamptz;
