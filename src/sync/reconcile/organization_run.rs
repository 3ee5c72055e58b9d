//! The state of a reconcile of the kinds other than users.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::domain::event::Deletion;
use crate::domain::membership::Sides;
use crate::domain::object::Kind;
use crate::domain::timestamp::Timestamp;
use crate::store::role_lists::ENVIRONMENT;
use crate::store::scans::ScanCounts;
use crate::sync::backfill::organizations::KindCounts;
use crate::sync::drift::Drift;
use crate::sync::list_scan::{List, ListScan};

/// The result of a complete reconcile.
#[derive(Clone, Debug, Default)]
pub struct OrganizationsReport {
    /// The numbers of objects that were changed, or would be changed.
    pub counts: KindCounts,
    /// All differences. After a repair, only those that it cannot repair.
    pub drift: Vec<Drift>,
}

/// The result of a step.
#[derive(Debug)]
pub enum OrganizationsReconcileStep {
    /// The reconcile continues.
    InProgress {
        /// The counts so far.
        counts: KindCounts,
        /// Number of objects that must still be read by ID. It can grow until all tables were compared.
        unconfirmed: usize,
    },
    /// The reconcile is complete.
    Done(OrganizationsReport),
}

/// What a run does next.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Read WorkOS's list of organizations.
    List,
    /// Read the memberships and roles of each listed organization.
    Walk,
    /// Compare the rows of this kind after this ID.
    Compare(Kind, String),
    /// Read by ID the organizations that are deleted in the table, if WorkOS lists them or if they have live memberships.
    ConfirmDeleted,
    /// Read by ID the objects of this kind that were not listed.
    ReadById(Kind),
    /// Write the deletions.
    Finish,
}

/// A live membership that was not listed.
#[derive(Clone, Debug)]
pub(super) struct Unlisted {
    pub(super) id: String,
    pub(super) of: Option<Sides>,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) phase: Phase,
    /// The start, by WorkOS's clock. Objects that were created later may be missing in the lists.
    pub(super) started_at: Option<Timestamp>,
    pub(super) organizations: ListScan,
    /// The listed organizations whose memberships and roles are not read yet, and the environment, which has only roles.
    pub(super) queue: VecDeque<String>,
    /// The scan of the memberships of the first organization in `queue`.
    pub(super) memberships: Option<ListScan>,
    /// Whether the memberships of the first organization in `queue` were read.
    pub(super) are_memberships_read: bool,
    /// Organizations whose memberships WorkOS refused to list. Nothing is inferred about these memberships.
    pub(super) unread: HashSet<String>,
    /// Hashes of the listed IDs.
    pub(super) seen: HashSet<u128>,
    pub(super) has_organizations: bool,
    /// A listed object of each kind.
    pub(super) samples: HashMap<Kind, String>,
    pub(super) report: OrganizationsReport,
    /// Rows to read by ID.
    pub(super) to_read: VecDeque<Unlisted>,
    /// Organizations that are deleted in the table, with their live memberships.
    pub(super) deleted_here: BTreeMap<String, Vec<Unlisted>>,
    pub(super) live: usize,
    pub(super) max_deletions: Option<usize>,
    /// Live organizations that WorkOS does not know, each with the time of its answer.
    pub(super) gone_organizations: BTreeMap<String, Timestamp>,
    /// Memberships that WorkOS does not know.
    pub(super) gone_memberships: Vec<(Unlisted, Timestamp)>,
    /// Memberships of organizations that WorkOS does not know.
    pub(super) ended: Vec<(Unlisted, Timestamp)>,
    /// Kinds for which a 404 does not contain the ID. Such a 404 is accepted only if an object of the kind can be read by ID.
    pub(super) needs_confirmation: HashSet<Kind>,
    /// Kinds of which an object was read by ID.
    pub(super) read_by_id: HashSet<Kind>,
}

impl Run {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::List,
            started_at: None,
            organizations: ListScan::of(List::Organizations),
            queue: VecDeque::from([ENVIRONMENT.to_owned()]),
            memberships: None,
            are_memberships_read: false,
            unread: HashSet::new(),
            seen: HashSet::new(),
            has_organizations: false,
            samples: HashMap::new(),
            report: OrganizationsReport::default(),
            to_read: VecDeque::new(),
            deleted_here: BTreeMap::new(),
            live: 0,
            max_deletions: None,
            gone_organizations: BTreeMap::new(),
            gone_memberships: Vec::new(),
            ended: Vec::new(),
            needs_confirmation: HashSet::new(),
            read_by_id: HashSet::new(),
        }
    }

    pub(super) fn counts_of(&mut self, kind: Kind) -> &mut ScanCounts {
        let counts = &mut self.report.counts;
        if kind == Kind::Organization { &mut counts.organizations } else { &mut counts.memberships }
    }

    pub(super) fn note_unknown(&mut self, kind: Kind, has_id: bool) {
        if !has_id {
            self.needs_confirmation.insert(kind);
        }
    }

    pub(super) fn is_expected(&self, created_at: Option<Timestamp>) -> bool {
        created_at.is_none_or(|created_at| self.started_at.is_some_and(|started_at| created_at <= started_at))
    }

    /// Counts the confirmed deletions, and returns them with the time of each answer: the organizations first.
    pub(super) fn deletions(&mut self) -> Vec<(Deletion, Timestamp)> {
        let organizations = self.gone_organizations.iter();
        let organizations: Vec<(Deletion, Timestamp)> = organizations
            .map(|(id, at)| (Deletion { kind: Kind::Organization, id: id.clone(), of: None }, *at))
            .collect();
        let memberships = self.gone_memberships.iter().chain(&self.ended);
        let memberships: Vec<(Deletion, Timestamp)> = memberships
            .map(|(row, at)| (Deletion { kind: Kind::Membership, id: row.id.clone(), of: row.of.clone() }, *at))
            .collect();
        let number = |gone: &[_]| i64::try_from(gone.len()).unwrap_or(i64::MAX);
        self.report.counts.organizations.tombstoned = number(&organizations);
        self.report.counts.memberships.tombstoned = number(&memberships);
        organizations.into_iter().chain(memberships).collect()
    }
}
