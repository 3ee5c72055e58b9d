//! Pages of lists, in ID order. WorkOS's IDs sort by creation time. A cursor can be any ID, also one that no object has.

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// Selects a page of a list.
#[derive(Clone, Copy, Debug)]
pub struct PageOf<'a> {
    /// The order of the list.
    pub order: Order,
    /// Select the objects right before this ID in the list.
    pub before: Option<&'a str>,
    /// Select the objects right after this ID in the list.
    pub after: Option<&'a str>,
    /// Maximum number of objects.
    pub limit: usize,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The objects, in the order of the list.
    pub items: Vec<T>,
    /// The ID of the first object, if the list has objects before it.
    pub before: Option<String>,
    /// The ID of the last object, if the list has objects after it.
    pub after: Option<String>,
}

impl<T> Page<T> {
    /// Replaces each object. Objects that become `None` are omitted.
    pub(super) fn filter_map<U>(self, replace: impl FnMut(T) -> Option<U>) -> Page<U> {
        let items = self.items.into_iter().filter_map(replace).collect();
        Page { items, before: self.before, after: self.after }
    }
}

/// The range that a statement reads for a page: objects after or before an ID, and one object more than the page contains.
pub(super) struct Range<'a> {
    /// Whether the range continues to greater IDs.
    pub(super) upward: bool,
    /// The ID that is not included.
    pub(super) from: &'a str,
    pub(super) limit: i64,
}

/// Greater than every ID: IDs compare bytewise, and no character has greater bytes.
const END: &str = "\u{10FFFF}";

impl<'a> PageOf<'a> {
    pub(super) fn range(&self) -> Range<'a> {
        let (upward, from) = match (self.order, self.before, self.after) {
            (Order::Ascending, None, after) => (true, after.unwrap_or_default()),
            (Order::Ascending, Some(before), _) => (false, before),
            (Order::Descending, None, after) => (false, after.unwrap_or(END)),
            (Order::Descending, Some(before), _) => (true, before),
        };
        Range { upward, from, limit: i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_add(1) }
    }

    /// Returns the page from the objects that were read for [`PageOf::range`].
    pub(super) fn page<T>(&self, mut items: Vec<T>, id: impl Fn(&T) -> &str) -> Page<T> {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        // With a cursor, the caller comes from a neighbouring page.
        let came_from = self.before.is_some() || self.after.is_some();
        let backwards = self.before.is_some();
        if backwards {
            items.reverse();
        }
        let (before, after) = if backwards { (more, came_from) } else { (came_from, more) };
        let cursor = |item: Option<&T>, there: bool| item.filter(|_| there).map(|item| id(item).to_owned());
        Page { before: cursor(items.first(), before), after: cursor(items.last(), after), items }
    }
}
