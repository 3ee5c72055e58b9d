//! A WorkOS environment: its users, their changes, and the webhook deliveries.

use std::collections::BTreeMap;

use authkit_sync::dev::workos::{ApiFaults, Faults, Held, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::timestamp::Timestamp;
use serde_json::{Value, json};

use super::members::Members;
use crate::support::lab::{another_workos, object};

/// Maximum number of users of an environment, including deleted ones.
const USERS: usize = 14;

/// An event as WorkOS created it.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) id: String,
    pub(super) event_type: String,
    pub(super) created_at: Timestamp,
    /// When it was created by the true clock. The `created_at` of a late event is earlier.
    pub(super) happened_at: Timestamp,
}

/// The last state of a user at WorkOS.
pub(super) struct LastState {
    pub(super) user: Value,
    pub(super) deleted_at: Option<Timestamp>,
    /// When the user was deleted according to the event, which can be late.
    pub(super) event_says: Option<Timestamp>,
}

impl LastState {
    fn live(user: Value) -> Self {
        Self { user, deleted_at: None, event_says: None }
    }
}

pub(super) struct Environment {
    pub(super) workos: SimulatedWorkos,
    clock: Clock,
    /// All users, including deleted ones.
    pub(super) users: BTreeMap<String, LastState>,
    /// Whether organizations, memberships and sessions change, too.
    pub(super) has_members: bool,
    pub(super) members: Members,
    /// Every event, oldest first.
    pub(super) events: Vec<Made>,
    /// Open deliveries, and the number of attempts of each one.
    pub(super) deliveries: Vec<(Held, u32)>,
    /// Whether a webhook endpoint exists.
    pub(super) receives: bool,
    /// No event reports users that were deleted before this instant.
    pub(super) heard_since: Timestamp,
    /// The instant from which catch-up reads events, once it has started.
    pub(super) read_since: Option<Timestamp>,
    /// The current faults of the API.
    pub(super) faults: ApiFaults,
    /// Number of items on a page.
    page: usize,
    /// Whether WorkOS has deleted some events that were never read.
    pub(super) forgotten: bool,
    /// Whether the `Date` header was wrong, so that our own clocks were used. They can be ahead of WorkOS's clock by the tolerance
    /// of dates.
    pub(super) misdated: bool,
    /// Whether the database belonged to another environment for a while, whose reconcile may have deleted users of this one.
    pub(super) left: bool,
}

impl Environment {
    pub(super) async fn start(clock: &Clock, seed: u64, receives: bool, has_members: bool) -> Self {
        let workos = another_workos(clock, seed, None).await;
        workos.set_faults(Faults { hold: true, ..Faults::default() });
        workos.add_endpoint("http://held.invalid/");
        let mut environment = Self {
            workos,
            clock: clock.clone(),
            users: BTreeMap::new(),
            has_members,
            members: Members::default(),
            events: Vec::new(),
            deliveries: Vec::new(),
            receives,
            heard_since: clock.now(),
            read_since: None,
            faults: ApiFaults::default(),
            page: usize::try_from(seed % 4).unwrap() + 1,
            forgotten: false,
            misdated: false,
            left: false,
        };
        environment.heal();
        environment
    }

    /// Ends all faults of the API.
    pub(super) fn heal(&mut self) {
        self.change(self.calm());
    }

    /// Sets the faults of the API.
    pub(super) fn change(&mut self, faults: ApiFaults) {
        self.misdated |= faults.date_offset_s != 0;
        self.workos.set_api_faults(faults.clone());
        self.faults = faults;
    }

    /// Returns no faults, but short pages, so that there are many pages.
    pub(super) fn calm(&self) -> ApiFaults {
        let retention_s = self.forgotten.then_some(31 * 86_400);
        // WorkOS can reject an expired cursor, or silently list from the first page.
        let lost_cursors_start_over = self.forgotten && self.page.is_multiple_of(2);
        ApiFaults { page_limit: Some(self.page), retention_s, lost_cursors_start_over, ..ApiFaults::default() }
    }

    /// Returns whether the database can permanently lack events, so that only a reconcile repairs the table.
    pub(super) fn has_gaps(&self) -> bool {
        self.forgotten || self.left
    }

    pub(super) fn live_users(&self) -> Vec<String> {
        self.users.iter().filter(|(_, user)| user.deleted_at.is_none()).map(|(id, _)| id.clone()).collect()
    }

    /// Changes a user, or creates an event about one. Then changes an organization, a membership or a session.
    pub(super) fn history(&mut self, random: &mut fastrand::Rng) {
        let user = random.choice(&self.live_users()).cloned();
        match (user, random.u8(0..20)) {
            (None, _) | (_, 0..6) if self.users.len() < USERS => self.create(random),
            (Some(id), 0..15) => self.rename(&id, random),
            (Some(id), 15..17) => self.delete(&id),
            (Some(id), 17..19) => {
                self.workos.sign_in(&id).unwrap();
                self.users.get_mut(&id).unwrap().user["last_sign_in_at"] = json!(self.clock.now());
            }
            (Some(id), _) => {
                let data = json!({"object": "organization_membership", "id": "om_1", "user_id": id});
                let _ = self.workos.emit("organization_membership.created", data);
            }
            (None, _) => {}
        }
        if self.has_members {
            self.history_of_members(random);
        }
        self.note_events();
    }

    fn create(&mut self, random: &mut fastrand::Rng) {
        let email = format!("{}@example.test", random.u64(..));
        let given = object(json!({"email": email, "first_name": name(random)}));
        let user = self.workos.create_user(&given).unwrap();
        self.users.insert(user["id"].as_str().unwrap().to_owned(), LastState::live(user));
    }

    pub(super) fn rename(&mut self, id: &str, random: &mut fastrand::Rng) {
        let user = self.workos.update_user(id, &object(json!({"first_name": name(random)}))).unwrap();
        self.users.insert(id.to_owned(), LastState::live(user));
    }

    /// Deletes a user. The caller must call `note_events`.
    pub(super) fn delete(&mut self, id: &str) {
        self.workos.delete_user(id).unwrap();
        self.users.get_mut(id).unwrap().deleted_at = Some(self.clock.now());
    }

    /// Records the events since the last call, and their deliveries.
    pub(super) fn note_events(&mut self) {
        for held in self.workos.take_held() {
            let event: Value = serde_json::from_slice(&held.body).unwrap();
            let event_type = event["event"].as_str().unwrap().to_owned();
            let created_at = Timestamp::parse(event["created_at"].as_str().unwrap()).unwrap();
            if event_type == "user.deleted" {
                self.users.get_mut(event["data"]["id"].as_str().unwrap()).unwrap().event_says = Some(created_at);
            }
            self.members.note(&event, created_at, self.clock.now());
            let (id, happened_at) = (held.event_id.clone(), self.clock.now());
            self.events.push(Made { id, event_type, created_at, happened_at });
            if self.receives {
                self.deliveries.push((held, 0));
            }
        }
    }
}

/// The beginning of the names that PostgreSQL refuses as data; see `CLEAN`.
const REFUSED: &str = "refused";

pub(super) fn name(random: &mut fastrand::Rng) -> String {
    let number = random.u16(..);
    let begins = if number.is_multiple_of(10) { REFUSED } else { "name" };
    format!("{begins} {number}")
}

/// Returns whether this event cannot be applied as long as PostgreSQL refuses some names.
pub(super) fn can_be_quarantined(held: &Held) -> bool {
    let event: Value = serde_json::from_slice(&held.body).unwrap();
    let data = &event["data"];
    let is_refused = |field: &str| data[field].as_str().is_some_and(|name| name.starts_with(REFUSED));
    match event["event"].as_str().unwrap() {
        "user.created" | "user.updated" => is_refused("first_name"),
        "organization.created" | "organization.updated" => is_refused("name"),
        // It lacks fields that a membership must have.
        event_type => event_type == "organization_membership.created" && data["status"].is_null(),
    }
}
