//! Commands that share settings.

/// Commands that use the database.
pub(super) const DATABASE: &[&str] =
    &["serve", "migrate", "backfill", "reconcile", "rebind", "events", "user", "handlers", "token"];

/// Commands that belong to one WorkOS environment.
pub(super) const WORKOS: &[&str] = &["serve", "backfill", "reconcile", "rebind", "token"];

/// Commands that send requests to the WorkOS API.
pub(super) const API: &[&str] = &["serve", "backfill", "reconcile", "rebind", "token", "webhook register"];

/// Commands that depend on what is synced.
pub(super) const SYNCED: &[&str] =
    &["serve", "backfill", "reconcile", "events retry", "events replay", "webhook register"];

/// Commands that decide actions.
pub(super) const ACTIONS: &[&str] = &["serve", "action try"];

/// Commands that log as configured: all except `dev`.
pub(super) const ALL: &[&str] = &[
    "serve",
    "migrate",
    "backfill",
    "reconcile",
    "rebind",
    "events",
    "user",
    "handlers",
    "token",
    "webhook",
    "action",
    "healthcheck",
    "doctor",
    "status",
];
