//! The rows of the objects that a batch names: first as they were read, then as the batch changes them.

use std::collections::BTreeSet;

use crate::domain::decide::Stored;
use crate::domain::event::Observation;
use crate::domain::object::{Kind, ObjectKey};
use crate::store::DbConnection;
use crate::store::StoreError;
use crate::store::memberships::Ended;
use crate::store::objects;
use crate::store::rows::{Found, Rows};

/// The objects of a batch, by kind and ID.
#[derive(Clone, Debug, Default)]
pub(super) struct BatchRows([Rows; Kind::ALL.len()]);

/// The IDs that a batch names, by kind, sorted and without duplicates.
pub(super) struct Named([Vec<String>; Kind::ALL.len()]);

impl Named {
    /// Returns the objects whose rows must be locked to apply these observations.
    pub(super) fn by(observations: &[Observation]) -> Self {
        let mut named: [BTreeSet<&str>; Kind::ALL.len()] = Default::default();
        for (kind, id) in observations.iter().flat_map(Observation::locked) {
            named[kind as usize].insert(id);
        }
        Self(named.map(|ids| ids.into_iter().map(str::to_owned).collect()))
    }

    /// Returns the kinds and the IDs of the named objects, in the order in which their rows are locked.
    pub(super) fn by_kind(&self) -> impl Iterator<Item = (Kind, &[String])> {
        Kind::ALL.into_iter().zip(&self.0).filter(|(_, ids)| !ids.is_empty()).map(|(kind, ids)| (kind, &ids[..]))
    }
}

impl BatchRows {
    /// Locks and reads these objects.
    pub(super) async fn lock(connection: &mut DbConnection<'_>, named: &Named) -> Result<Self, StoreError> {
        let mut rows = Self::default();
        for (kind, ids) in named.by_kind() {
            rows.0[kind as usize] = objects::lock(connection, kind, ids).await?;
        }
        Ok(rows)
    }

    /// Reads these objects without locking them.
    pub(super) async fn find(connection: &mut DbConnection<'_>, named: &Named) -> Result<Self, StoreError> {
        let mut rows = Self::default();
        for (kind, ids) in named.by_kind() {
            rows.0[kind as usize] = objects::find(connection, kind, ids).await?;
        }
        Ok(rows)
    }

    /// Returns the rows of one kind.
    pub(super) fn of(&self, kind: Kind) -> &Rows {
        &self.0[kind as usize]
    }

    pub(super) fn get(&self, (kind, id): (Kind, &str)) -> Option<&Found> {
        self.of(kind).get(id)
    }

    pub(super) fn get_mut(&mut self, (kind, id): (Kind, &str)) -> Option<&mut Found> {
        self.0[kind as usize].get_mut(id)
    }

    /// Returns all rows, in the order in which they are locked.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Kind, &str, &Found)> {
        Kind::ALL.into_iter().zip(&self.0).flat_map(|(kind, rows)| rows.iter().map(move |(id, row)| (kind, &**id, row)))
    }

    pub(super) fn values_mut_of(&mut self, kind: Kind) -> impl Iterator<Item = &mut Found> {
        self.0[kind as usize].values_mut()
    }

    /// Returns whether this user has a tombstone.
    pub(super) fn is_deleted_user(&self, id: Option<&str>) -> bool {
        id.and_then(|id| self.get((Kind::User, id))).is_some_and(|user| user.stored.is_tombstone())
    }

    /// Turns these memberships into tombstones, as the deletion of their users did in the database. The later observations of a
    /// batch are decided from these rows.
    pub(super) fn end(&mut self, ended: &[Ended]) {
        for membership in ended {
            if let Some(row) = self.get_mut((Kind::Membership, &membership.id)) {
                row.stored = Stored::Tombstone { deleted_at: None, of: row.stored.sides().cloned() };
            }
        }
    }

    /// Inserts a placeholder for each absent object, so that there is something to lock, and returns their keys.
    pub(super) async fn insert_placeholders(
        &mut self,
        connection: &mut DbConnection<'_>,
    ) -> Result<Vec<ObjectKey>, StoreError> {
        let mut inserted = Vec::new();
        for kind in Kind::ALL {
            let rows = &mut self.0[kind as usize];
            let absent: Vec<String> =
                rows.iter().filter(|(_, row)| row.revision.is_none()).map(|(id, _)| id.clone()).collect();
            if absent.is_empty() {
                continue;
            }
            objects::insert_placeholders(connection, kind, &absent).await?;
            for row in rows.values_mut() {
                row.revision.get_or_insert_default();
            }
            inserted.extend(absent.into_iter().map(|id| ObjectKey { kind, id }));
        }
        Ok(inserted)
    }

    /// Deletes those of these placeholders whose object is still absent.
    pub(super) async fn delete_unused(
        &self,
        connection: &mut DbConnection<'_>,
        placeholders: &[ObjectKey],
    ) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            let of_kind = placeholders.iter().filter(|key| key.kind == kind);
            let is_unused =
                |key: &&ObjectKey| matches!(self.get((kind, &key.id)), Some(Found { stored: Stored::Absent, .. }));
            let unused: Vec<String> = of_kind.filter(is_unused).map(|key| key.id.clone()).collect();
            if !unused.is_empty() {
                objects::delete_placeholders(connection, kind, &unused).await?;
            }
        }
        Ok(())
    }
}
