//! Organizations, memberships and sessions of a WorkOS environment, the content of its events about them, and the expected rows.

use std::collections::{BTreeMap, BTreeSet};

use authkit_sync::dev::workos::Cascades;
use authkit_sync::domain::change::Difference;
use authkit_sync::domain::object::Kind;
use authkit_sync::domain::timestamp::Timestamp;
use serde_json::{Value, json};

use super::environment::{Environment, name};
use super::world::World;
use crate::support::lab::object;
use crate::support::rows::{Columns, TABLES, columns_of, rows_of};

/// Maximum number of live organizations.
const ORGANIZATIONS: usize = 4;

/// The slugs of roles and permissions. They are few, so that WorkOS often reuses one.
const ROLES: [&str; 3] = ["billing", "support", "admin"];
const ORGANIZATION_ROLES: [&str; 2] = ["org-owner", "org-guest"];
const PERMISSIONS: [&str; 3] = ["orders:read", "orders:write", "users:manage"];

/// The content of the events of an environment about organizations, memberships and sessions.
#[derive(Default)]
pub(super) struct Members {
    objects: BTreeMap<(Kind, String), Told>,
    /// Revoked sessions, with their users.
    revoked: BTreeMap<String, (String, Timestamp)>,
}

/// The content of the events about an object.
struct Told {
    /// The last event that described it.
    last: Value,
    /// The time of its delete event.
    deleted_at: Option<Timestamp>,
    /// The time of the last event.
    told_at: Timestamp,
}

impl Members {
    /// Records an event.
    pub(super) fn note(&mut self, event: &Value, created_at: Timestamp, now: Timestamp) {
        let (event_type, data) = (event["event"].as_str().unwrap(), &event["data"]);
        let (id, told_at) = (data["id"].as_str().unwrap_or_default().to_owned(), created_at.min(now));
        if event_type == "session.revoked" {
            self.revoked.insert(id, (data["user_id"].as_str().unwrap().to_owned(), told_at));
            return;
        }
        let kind = Kind::of_event_type(event_type).filter(|(kind, _)| *kind != Kind::User);
        // An event of the simulation lacks the status.
        let Some((kind, difference)) = kind.filter(|(kind, _)| *kind != Kind::Membership || data["status"].is_string())
        else {
            return;
        };
        let told =
            self.objects.entry((kind, id)).or_insert_with(|| Told { last: Value::Null, deleted_at: None, told_at });
        told.told_at = told_at;
        if difference == Difference::Deleted {
            told.deleted_at = Some(created_at);
        } else {
            told.last = data.clone();
        }
    }

    /// Returns how many organizations were deleted.
    pub(super) fn deleted_organizations(&self) -> usize {
        let deleted =
            self.objects.iter().filter(|((kind, _), told)| *kind == Kind::Organization && told.deleted_at.is_some());
        deleted.count()
    }
}

impl Environment {
    /// Changes an organization, a membership or a session, if the random numbers allow it.
    pub(super) fn history_of_members(&mut self, random: &mut fastrand::Rng) {
        let ids = |objects: Vec<Value>| -> Vec<String> {
            objects.iter().map(|object| object["id"].as_str().unwrap().to_owned()).collect()
        };
        let organizations = ids(self.workos.organizations());
        let organization = random.choice(&organizations).cloned();
        let membership = random.choice(&ids(self.workos.memberships())).cloned();
        let user = random.choice(&self.live_users()).cloned();
        let workos = &self.workos;
        // WorkOS refuses some of them, for example to deactivate a pending membership.
        match (random.u8(0..40), organization, membership, user) {
            (0..5, ..) if organizations.len() < ORGANIZATIONS => {
                let _ = workos.create_organization(&object(json!({"name": name(random)})));
            }
            (5..8, Some(id), ..) => {
                let _ = workos.update_organization(&id, &object(json!({"name": name(random)})));
            }
            (8, Some(id), ..) => workos.delete_organization(&id).unwrap(),
            (9..17, Some(of), _, Some(user)) => {
                let status = if random.u8(0..4) == 0 { "pending" } else { "active" };
                let given = json!({
                    "user_id": user, "organization_id": of, "status": status,
                    "custom_attributes": {"department": name(random)},
                });
                let _ = workos.create_membership(&object(given));
            }
            (17..21, _, Some(id), _) => {
                let roles = [&["admin"][..], &["member"], &["member", "admin"], &["billing"], &["org-owner"]];
                let _ = workos.set_membership_roles(&id, random.choice(roles).unwrap());
            }
            // A directory manages the membership, and suspends the member.
            (21..23, _, Some(id), _) => {
                let _ = workos.update_membership(&id, &object(json!({"directory_managed": true})));
            }
            (23..25, _, Some(id), _) => drop(workos.deactivate_membership(&id)),
            (25, _, Some(id), _) => drop(workos.reactivate_membership(&id)),
            (26, _, Some(id), _) => drop(workos.accept_membership(&id)),
            (27..29, _, Some(id), _) => workos.remove_membership(&id).unwrap(),
            (29, _, _, Some(user)) => {
                let session =
                    workos.create_session(&user, &object(json!({"impersonator": {"email": "a@example.test"}})));
                let _ = workos.revoke_session(session.unwrap()["id"].as_str().unwrap());
            }
            (30..32, ..) => workos.set_cascades(Cascades { memberships: random.bool(), sessions: random.bool() }),
            (32..37, ..) => self.history_of_roles(random),
            (37.., Some(of), ..) => self.history_of_organization_roles(&of, random),
            _ => {}
        }
    }

    /// Changes a role or a permission of the environment, if WorkOS accepts it.
    fn history_of_roles(&mut self, random: &mut fastrand::Rng) {
        let (workos, role) = (&self.workos, *random.choice(&ROLES).unwrap());
        let permission = *random.choice(&PERMISSIONS).unwrap();
        match random.u8(0..7) {
            0..2 => drop(workos.create_role(&object(json!({"slug": role, "name": name(random)})))),
            // WorkOS sends no event.
            2 => drop(workos.update_role(role, &object(json!({"name": name(random)})))),
            3 => drop(workos.set_role_permissions(role, &[permission])),
            4 => drop(workos.delete_role(role)),
            5 => drop(workos.create_permission(&object(json!({"slug": permission, "name": name(random)})))),
            _ => drop(workos.delete_permission(permission)),
        }
    }

    fn history_of_organization_roles(&mut self, of: &str, random: &mut fastrand::Rng) {
        let (workos, role) = (&self.workos, *random.choice(&ORGANIZATION_ROLES).unwrap());
        match random.u8(0..4) {
            0..2 => {
                drop(workos.create_organization_role(of, &object(json!({"slug": role, "name": name(random)}))));
            }
            2 => {
                let permission = *random.choice(&PERMISSIONS).unwrap();
                drop(workos.set_organization_role_permissions(of, role, &[permission]));
            }
            _ => drop(workos.delete_organization_role(of, role)),
        }
    }
}

/// The columns of a row that WorkOS determines.
fn of_workos(row: &Columns) -> Columns {
    row.iter()
        .filter(|(name, _)| !name.starts_with("synced_"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

impl World<'_> {
    /// Checks that every organization, membership and revoked session about which an event had to arrive is stored as WorkOS has it,
    /// or as its last event described it.
    pub(super) async fn compare_members(&self) {
        let here = self.here();
        // An organization of the API has a field that events do not have.
        let live = here.workos.organizations().into_iter().chain(here.workos.memberships()).map(|mut object| {
            object.as_object_mut().unwrap().remove("allow_profiles_outside_organization");
            (object["id"].as_str().unwrap().to_owned(), object)
        });
        let live: BTreeMap<String, Value> = live.collect();
        let since = here.read_since.map_or(here.heard_since, |read| read.max(here.heard_since));
        let users = rows_of(&self.pool, "user_records", None).await.unwrap();
        let is_deleted_user = |id: &str| users.get(id).is_some_and(|user| user["synced_deleted"] == true);
        for (kind, table) in TABLES.into_iter().filter(|(kind, _)| *kind != Kind::User) {
            let rows = rows_of(&self.pool, table, None).await.unwrap();
            for ((_, id), told) in
                here.members.objects.iter().filter(|((of, _), told)| *of == kind && told.told_at >= since)
            {
                let row = rows.get(id).unwrap_or_else(|| panic!("{id} is missing"));
                let user_ended = told.last["user_id"].as_str().is_some_and(is_deleted_user);
                let says_deleted = row.get("synced_deleted_at").and_then(Value::as_str).and_then(Timestamp::parse);
                match live.get(id) {
                    // The deletion of a role can change its members without an event. A reconcile may have found it.
                    Some(_) if of_workos(row) == columns_of(&told.last) => {}
                    Some(object) => assert_eq!(of_workos(row), columns_of(object), "{id}"),
                    None if told.deleted_at.is_some() || user_ended => {
                        assert_eq!(row["synced_deleted"], json!(true), "{id}");
                        assert!(told.deleted_at.is_none() || says_deleted == told.deleted_at, "{id}: {says_deleted:?}");
                    }
                    // The membership ended with its organization, without an event. A reconcile may have deleted it.
                    None if row["synced_deleted"] == true => {}
                    None => assert_eq!(of_workos(row), columns_of(&told.last), "{id}"),
                }
            }
        }
        self.compare_views_of_members(&live, since).await;
        let revoked: BTreeSet<String> = self.ids("select id from workos.revoked_sessions").await;
        for (id, (user, told_at)) in here.members.revoked.iter().filter(|(_, (_, told_at))| *told_at >= since) {
            assert_eq!(revoked.contains(id), !is_deleted_user(user), "{id} of {user}, revoked at {told_at}");
        }
    }

    /// Checks that the views contain exactly the memberships that WorkOS has, and of the active ones those whose user and
    /// organization are known.
    async fn compare_views_of_members(&self, live: &BTreeMap<String, Value>, since: Timestamp) {
        let not_ended = self.ids("select id from workos.organization_memberships").await;
        let active = self.ids("select id from workos.active_memberships").await;
        let known = self.ids("select id from workos.users union all select id from workos.organizations").await;
        for ((kind, id), told) in &self.here().members.objects {
            if *kind != Kind::Membership || told.told_at < since {
                continue;
            }
            let is_known = |side: &str| known.contains(told.last[side].as_str().unwrap());
            let membership = live.get(id);
            assert_eq!(not_ended.contains(id), membership.is_some(), "{id}: {membership:?}");
            let counts = membership.is_some_and(|membership| membership["status"] == "active");
            let counts = counts && is_known("user_id") && is_known("organization_id");
            assert_eq!(active.contains(id), counts, "{id}: {membership:?}");
        }
    }

    /// Checks that after a backfill, a reconcile and a refresh every organization, membership, role and permission in the tables
    /// equals the one at WorkOS, also if no event described it.
    pub(super) async fn compare_everything(&self) {
        let here = self.here();
        let organizations = here.workos.organizations().into_iter().map(|mut organization| {
            organization.as_object_mut().unwrap().remove("allow_profiles_outside_organization");
            organization
        });
        let organizations: Vec<Value> = organizations.collect();
        let users = rows_of(&self.pool, "user_records", None).await.unwrap();
        let members = here.workos.memberships();
        for (table, live) in [("organization_records", &organizations), ("organization_membership_records", &members)] {
            let live: BTreeMap<&str, &Value> =
                live.iter().map(|object| (object["id"].as_str().unwrap(), object)).collect();
            let rows = rows_of(&self.pool, table, None).await.unwrap();
            for (id, object) in &live {
                let row = rows.get(*id).unwrap_or_else(|| panic!("{id} is missing"));
                let is_user_deleted =
                    || users.get(object["user_id"].as_str()?).map(|user| user["synced_deleted"] == true);
                // A reconcile of the other environment has deleted it, or its user.
                if here.left && (row["synced_deleted"] == true || is_user_deleted() == Some(true)) {
                    continue;
                }
                assert_eq!(of_workos(row), columns_of(object), "{id}");
            }
            let ended =
                rows.iter().filter(|(id, row)| row["synced_deleted"] == false && !live.contains_key(id.as_str()));
            let ended: Vec<&String> = ended.map(|(id, _)| id).collect();
            assert!(ended.is_empty(), "{table}: live here, but unknown to WorkOS: {ended:?}");
        }
        self.compare_roles(&organizations).await;
    }

    /// Checks that the views of roles and permissions show WorkOS's lists.
    async fn compare_roles(&self, organizations: &[Value]) {
        let workos = &self.here().workos;
        let own = organizations.iter().flat_map(|organization| {
            let id = &organization["id"];
            let roles = workos.organization_roles(id.as_str().unwrap()).into_iter();
            roles.filter(|role| role["slug"].as_str().unwrap().starts_with("org-")).map(move |mut role| {
                role["organization_id"] = id.clone();
                role
            })
        });
        for (view, listed) in
            [("roles", workos.roles()), ("permissions", workos.permissions()), ("organization_roles", own.collect())]
        {
            let rows = rows_of(&self.pool, view, None).await.unwrap();
            let rows: BTreeMap<String, Columns> = rows.into_iter().map(|(id, row)| (id, of_workos(&row))).collect();
            let id = |role: &Value| role["id"].as_str().unwrap().to_owned();
            let listed = listed.iter().map(|role| (id(role), columns_of(role))).collect();
            assert_eq!(rows, listed, "{view}");
        }
    }

    async fn ids(&self, sql: &'static str) -> BTreeSet<String> {
        sqlx::query_scalar::<_, String>(sql).fetch_all(&self.pool).await.unwrap().into_iter().collect()
    }
}
