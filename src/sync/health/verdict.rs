//! The verdict: is the table in sync?

use super::check::{Check, State};
use super::facts::{Expected, Facts};

/// The checks that decide whether the table is in sync. The other ones need attention, but the table is complete.
const OF_SYNC: [&str; 5] = ["database", "workos", "jobs", "sync_lag", "job:catch_up"];

/// The answer to the question whether the table is in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) state: State,
    pub(crate) headline: &'static str,
}

/// Returns the worst state of the checks.
pub(crate) fn worst<'a>(checks: impl IntoIterator<Item = &'a Check>) -> State {
    checks.into_iter().map(|check| check.state).max().unwrap_or(State::Ok)
}

impl Verdict {
    /// Computes the verdict from the checks. `facts` is `None` while the database cannot be read.
    pub(crate) fn of(checks: &[Check], expected: &Expected, facts: Option<&Facts>) -> Self {
        let verdict = |state, headline| Self { state, headline };
        let of_sync = worst(checks.iter().filter(|check| OF_SYNC.contains(&check.name.as_str())));
        let Some(facts) = facts else {
            return verdict(State::Failure, "Unknown: the database does not answer");
        };
        let is_workos_down = checks.iter().any(|check| check.name == "workos" && check.state != State::Ok);
        let fills = !facts.is_backfilled && facts.synced_through.is_none() && facts.runs("backfill");
        match (of_sync, worst(checks)) {
            (State::Warning, _) if fills => verdict(State::Warning, "Not yet in sync: the first backfill is running"),
            (State::Failure, _) => verdict(State::Failure, "Not in sync"),
            (State::Warning, _) if facts.synced_through.is_none() => verdict(State::Warning, "Not yet in sync"),
            (State::Warning, _) if is_workos_down => {
                verdict(State::Warning, "In sync so far, but WorkOS does not answer")
            }
            (State::Warning, _) => verdict(State::Warning, "Falling behind"),
            (State::Ok, State::Failure) => verdict(State::Warning, "In sync, but action is needed"),
            (State::Ok, State::Warning) => verdict(State::Warning, "In sync, with warnings"),
            (State::Ok, State::Ok) if expected.polls => verdict(State::Ok, "In sync"),
            (State::Ok, State::Ok) => verdict(State::Ok, "Receiving webhooks; completeness is not measured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, state: State) -> Check {
        Check { name: name.to_owned(), state, text: String::new(), fix: None }
    }

    #[test]
    fn without_the_database_nothing_is_known() {
        let expected = Expected {
            polls: true,
            poll_interval: std::time::Duration::from_secs(5),
            reconcile_interval: None,
            retention: std::time::Duration::from_secs(1),
            kinds: crate::domain::kinds::Kinds::ALL,
        };
        let verdict = Verdict::of(&[check("database", State::Failure)], &expected, None);
        assert_eq!((verdict.state, verdict.headline), (State::Failure, "Unknown: the database does not answer"));
        assert_eq!(worst(&[check("a", State::Warning), check("b", State::Ok)]), State::Warning);
    }
}
