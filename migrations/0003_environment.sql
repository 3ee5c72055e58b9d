-- What this database belongs to, and who can still read it.
set local lock_timeout = '5s';

-- One database serves one WorkOS environment. The first start records which; another client id is refused, because two
-- environments in one table would look like mass deletion to each other.
create table workos.environment (
    singleton   boolean primary key default true,
    client_id   text not null,
    recorded_at timestamptz not null default now(),
    constraint environment_singleton check (singleton)
);

-- A release refuses to start when this is newer than the newest migration it knows. Only a contract migration, which
-- takes away what older releases read, raises it; until then older releases go on beside newer ones.
create table workos.contract (
    singleton boolean primary key default true,
    version   bigint not null,
    constraint contract_singleton check (singleton)
);

insert into workos.contract (version) values (1);
