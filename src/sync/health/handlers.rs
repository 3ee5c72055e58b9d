//! Checks of the handlers: each one runs, and none holds back the change feed.

use super::check::{Check, ago, count};
use super::facts::Facts;
use crate::store::handlers::{Handler, HandlerStatus};

/// A paused handler that keeps changes for longer than this exceeds the usual retention of the feed. Seconds.
const HELD_BACK: i64 = 7 * 86_400;

pub(super) fn checks(statuses: &[HandlerStatus], handlers: &[Handler], facts: &Facts) -> Vec<Check> {
    let of = |status: &HandlerStatus| handlers.iter().find(|handler| handler.name == status.name);
    let mut checks: Vec<Check> = statuses.iter().map(|status| check(status, of(status), facts)).collect();
    if checks.is_empty() {
        checks.push(Check::ok("handlers", "no handler is registered"));
    }
    checks.push(feed(statuses, facts));
    checks
}

fn check(status: &HandlerStatus, handler: Option<&Handler>, facts: &Facts) -> Check {
    let name = &format!("handler:{}", status.name);
    let list = "read the error with `authkit-sync handlers list`";
    let sql = handler.and_then(|handler| handler.sql.as_ref());
    if let Some(sql) = sql.filter(|sql| !sql.present) {
        let fix = format!("create the function, or run `authkit-sync handlers remove {}`", status.name);
        return Check::failure(name, format!("the function {} does not exist", sql.function), fix);
    }
    if let Some(sql) = sql.filter(|sql| !sql.settable) {
        let text = format!("the service may not run the function as role {}", sql.role);
        return Check::failure(name, text, format!("grant the role {} to the service's role", sql.role));
    }
    if let Some(problem) = &status.problem {
        return Check::failure(name, problem.clone(), list);
    }
    if status.dead_lettered > 0 {
        let text = format!("{} dead-lettered, because every attempt failed", count(status.dead_lettered, "change"));
        return Check::failure(
            name,
            text,
            format!("{list}, correct the cause, and run `authkit-sync handlers redrive {}`", status.name),
        );
    }
    if status.state == "paused" {
        let text = format!("the handler is paused with {} waiting", count(status.depth, "change"));
        return Check::warning(name, text, format!("run `authkit-sync handlers resume {}`", status.name));
    }
    if let (true, Some(error)) = (status.waiting > 0, &status.last_error) {
        let sqlstate = error.sqlstate.as_deref().map(|code| format!(" (SQLSTATE {code})")).unwrap_or_default();
        let text = format!("the handler fails{sqlstate} with {} waiting for a retry", count(status.waiting, "change"));
        return Check::failure(name, text, format!("{list} and correct its cause; the service retries by itself"));
    }
    if !facts.runs(name) {
        let text = if status.function.is_some() {
            "no process runs the handler"
        } else {
            "no running process has this Rust handler"
        };
        return Check::failure(
            name,
            text,
            "start the process that registers it, or remove it with `authkit-sync handlers remove`",
        );
    }
    Check::ok(name, format!("the handler is {} with {} ahead of it", status.state, count(status.depth, "change")))
}

/// Checks that no paused handler prevents the deletion of old changes: the feed keeps every change that a handler has not
/// processed.
fn feed(statuses: &[HandlerStatus], facts: &Facts) -> Check {
    let paused = statuses.iter().filter(|status| status.state == "paused");
    let held =
        paused.filter_map(|status| Some((&status.name, facts.age(status.oldest_at?)))).max_by_key(|(_, age)| *age);
    match held {
        Some((handler, age)) if age > HELD_BACK => Check::failure(
            "feed",
            format!("the paused handler {handler} has kept changes for {}, so the change feed grows", ago(age)),
            format!("run `authkit-sync handlers resume {handler}`, or `authkit-sync handlers remove {handler}`"),
        ),
        _ => Check::ok("feed", "no paused handler holds back the change feed"),
    }
}
