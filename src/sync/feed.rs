//! Reads the change feed: the changes after a position, each with the current object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::domain::change::{Change, ChangeKind, Position};
use crate::domain::object::{Kind, Object, ObjectKey};
use crate::store::changes::{ChangeRow, FeedHead};
use crate::store::{Store, StoreError};
use crate::workos::wire;

/// Maximum number of changes in a page.
pub const PAGE: usize = 1_000;

/// Interval between two polls while callers wait. All callers of a process share a poll.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Time that [`Feed::stream`] waits for changes before it polls again.
const STREAM_WAIT: Duration = Duration::from_secs(20);

/// Why the changes after a position cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The changes after the position have expired, or the position belongs to another history of the database. Read all users
    /// again, and continue from the position of that response.
    #[error("this position has expired; read all users again, and continue from the position of that response")]
    Expired,
    /// The database is unavailable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A page of changes, and the position after it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Page {
    /// The changes, in order.
    pub data: Vec<Change>,
    /// The position after the last change of the page.
    pub position: Position,
}

/// Reads the change feed. Cloning is cheap; clones share their polls.
#[derive(Clone, Debug)]
pub struct Feed {
    store: Store,
    /// The head of the feed at the last poll.
    seen: Arc<Mutex<Option<(Instant, FeedHead)>>>,
}

impl Feed {
    /// Creates a reader of the feed in `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, seen: Arc::default() }
    }

    /// Returns the current position: every change up to it is committed, and later reads of users include it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn now(&self) -> Result<Position, StoreError> {
        Ok(position(&self.store.feed_head().await?, None))
    }

    /// Returns at most `limit` (and [`PAGE`]) changes after a position. Waits up to `wait` until there are any.
    ///
    /// # Errors
    /// [`FeedError`]
    pub async fn after(&self, after: &Position, limit: usize, wait: Duration) -> Result<Page, FeedError> {
        let asked = Instant::now();
        let until = asked + wait;
        let mut head = self.store.feed_head().await?;
        loop {
            let page = self.page(&head, after, limit).await?;
            if !page.data.is_empty() || Instant::now() >= until {
                return Ok(page);
            }
            loop {
                tokio::time::sleep_until(until.min(Instant::now() + POLL_INTERVAL)).await;
                let before = head;
                head = self.poll_head(asked).await?;
                if head != before || Instant::now() >= until {
                    break;
                }
            }
        }
    }

    /// Returns an endless stream of the changes after a position. The stream ends after the first error; restart it from the
    /// position of the last change.
    pub fn stream(self, after: Position) -> impl Stream<Item = Result<Change, FeedError>> + Send {
        let start = Some((self, Vec::new().into_iter(), after));
        stream::unfold(start, |state| async move {
            let (feed, mut changes, mut position) = state?;
            loop {
                if let Some(change) = changes.next() {
                    return Some((Ok(change), Some((feed, changes, position))));
                }
                match feed.after(&position, PAGE, STREAM_WAIT).await {
                    Ok(page) => (changes, position) = (page.data.into_iter(), page.position),
                    Err(error) => return Some((Err(error), None)),
                }
            }
        })
    }

    /// Returns the head of the feed, at most [`POLL_INTERVAL`] old and not older than `asked`, because the caller's position may be
    /// newer.
    async fn poll_head(&self, asked: Instant) -> Result<FeedHead, StoreError> {
        let mut seen = self.seen.lock().await;
        match &*seen {
            Some((at, head)) if *at >= asked && at.elapsed() < POLL_INTERVAL => Ok(head.clone()),
            _ => {
                let at = Instant::now();
                let head = self.store.feed_head().await?;
                *seen = Some((at, head.clone()));
                Ok(head)
            }
        }
    }

    async fn page(&self, head: &FeedHead, after: &Position, limit: usize) -> Result<Page, FeedError> {
        // The position is after the last one if the database was restored from a backup.
        if after.epoch != head.epoch || after.number < head.expired_through || after.number > head.issued {
            return Err(FeedError::Expired);
        }
        let limit = limit.clamp(1, PAGE);
        let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut entries = self.store.changes(after.number, head.horizon, limit_rows).await?;
        // Changes after the position may have expired before the page was read.
        if self.store.expired_through().await? > after.number {
            return Err(FeedError::Expired);
        }
        let full = entries.len() == limit;
        let payloads = self.payloads(&entries).await?;
        let complete =
            entries.iter().take_while(|entry| payload_id(entry).is_none_or(|id| payloads.contains_key(id))).count();
        let is_truncated = complete < entries.len();
        entries.truncate(complete);
        let end = if full || is_truncated { entries.last().map(|last| last.position) } else { None };
        let position = position(head, Some(end.unwrap_or_else(|| head.horizon.max(after.number))));
        let objects = self.current_objects(&entries).await?;
        let data = entries.into_iter().map(|entry| {
            let object = object_key(&entry).and_then(|key| objects.get(&key)).cloned();
            let data =
                payload_id(&entry).and_then(|id| payloads.get(id)).and_then(|bytes| wire::stored_data(bytes.as_ref()?));
            to_change(entry, &head.epoch, object, data)
        });
        Ok(Page { data: data.collect(), position })
    }

    /// Returns the current live objects of these changes.
    async fn current_objects(&self, entries: &[ChangeRow]) -> Result<BTreeMap<ObjectKey, Object>, StoreError> {
        let changed: BTreeSet<ObjectKey> = entries.iter().filter_map(object_key).collect();
        let mut live = BTreeMap::new();
        for kind in Kind::ALL {
            let ids: Vec<String> = changed.iter().filter(|key| key.kind == kind).map(|key| key.id.clone()).collect();
            if ids.is_empty() {
                continue;
            }
            for (id, stored) in self.store.objects(kind, &ids).await? {
                live.extend(stored.into_live().map(|object| (ObjectKey { kind, id }, object)));
            }
        }
        Ok(live)
    }

    async fn payloads(&self, entries: &[ChangeRow]) -> Result<BTreeMap<String, Option<Vec<u8>>>, StoreError> {
        let ids: Vec<String> = entries.iter().filter_map(payload_id).map(str::to_owned).collect();
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        Ok(self.store.event_payloads(&ids).await?.into_iter().collect())
    }

    /// Returns one change with the current object.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(super) async fn with_current_object(&self, entry: ChangeRow, epoch: &str) -> Result<Change, StoreError> {
        let entries = std::slice::from_ref(&entry);
        let object = self.current_objects(entries).await?.into_values().next();
        let payload = self.payloads(entries).await?.into_values().next().flatten();
        let data = payload.and_then(|bytes| wire::stored_data(&bytes));
        Ok(to_change(entry, epoch, object, data))
    }
}

/// Returns the ID of the event whose payload the inbox contains.
fn payload_id(entry: &ChangeRow) -> Option<&str> {
    let event = entry.event.as_ref().filter(|_| matches!(entry.kind, ChangeKind::Event(_)))?;
    Some(&event.id)
}

/// Returns the object of a change. `None` for an event that describes no object.
fn object_key(entry: &ChangeRow) -> Option<ObjectKey> {
    let (kind, _) = entry.kind.object()?;
    let id = if kind == Kind::User { &entry.user_id } else { &entry.object_id };
    id.clone().map(|id| ObjectKey { kind, id })
}

fn position(head: &FeedHead, number: Option<i64>) -> Position {
    Position { epoch: head.epoch.clone(), number: number.unwrap_or(head.horizon) }
}

fn to_change(
    entry: ChangeRow,
    epoch: &str,
    object: Option<Object>,
    data: Option<Box<serde_json::value::RawValue>>,
) -> Change {
    let mut change = Change {
        position: Position { epoch: epoch.to_owned(), number: entry.position },
        kind: entry.kind,
        user_id: entry.user_id,
        object_id: entry.object_id,
        changed: entry.changed,
        event: entry.event,
        origin: entry.origin,
        at: entry.at,
        user: None,
        organization: None,
        membership: None,
        data,
    };
    match object {
        Some(Object::User(user)) => change.user = Some(user),
        Some(Object::Organization(organization)) => change.organization = Some(organization),
        Some(Object::Membership(membership)) => change.membership = Some(membership),
        None => {}
    }
    change
}
