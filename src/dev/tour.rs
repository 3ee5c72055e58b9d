//! The short tour: creates, renames and deletes a user at WorkOS, makes the user a member of an organization and ends the
//! membership, and shows what the service answers.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::workos::{Faults, SimulatedWorkos};

/// Timeout of a step, much longer than a step takes.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// A step of the tour had the wrong result.
#[derive(Debug, thiserror::Error)]
#[error("the tour failed: {0}")]
pub struct TourError(String);

/// Plays the tour with the service at `url`, and passes a line about each step to `say`.
///
/// # Errors
/// [`TourError`] if a step has the wrong result.
pub async fn play(workos: &SimulatedWorkos, url: &str, say: impl Fn(&str)) -> Result<(), TourError> {
    let guide =
        Guide { client: crate::workos::http::http_client().map_err(|error| TourError(error.to_string()))?, url };
    // An interrupted tour may have created this user.
    let ada = |user: &&Value| user.get("email").and_then(Value::as_str) == Some("ada@example.test");
    if let Some(id) = workos.users().iter().find(ada).and_then(|user| user.get("id")).and_then(Value::as_str) {
        let _ = workos.delete_user(id);
    }
    let ada = object(json!({"email": "ada@example.test", "first_name": "Ada", "last_name": "Quill"}));
    let user = workos.create_user(&ada).map_err(|fault| TourError(format!("WorkOS rejected a user: {fault:?}")))?;
    let id = user.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    say(&format!("1. WorkOS      user.created   {id} (Ada Quill), signed and posted to /workos/webhook"));
    let token = workos.sign_in(&id).map_err(|fault| TourError(format!("WorkOS rejected a sign-in: {fault:?}")))?;
    let answer = guide.until("the new user", &token, |status, _| status == 200).await?;
    say(&format!("2. get_auth_user with Ada's access token   → 200 {}", brief(&answer)));

    let rename = |name: &str| {
        let given = object(json!({"first_name": name, "metadata": {"plan": "team"}}));
        workos.update_user(&id, &given).map_err(|fault| TourError(format!("WorkOS rejected a change: {fault:?}")))
    };
    let named =
        |name: &'static str| move |_, body: &Value| body.get("first_name").and_then(Value::as_str) == Some(name);
    rename("Adaline")?;
    say("3. WorkOS      user.updated   Ada is renamed Adaline");
    let answer = guide.until("the new name", &token, named("Adaline")).await?;
    say(&format!("4. get_auth_user   → 200 {}", brief(&answer)));

    workos.set_faults(Faults { drop: 100, ..Faults::default() });
    let lost = rename("Augusta");
    workos.set_faults(Faults::default());
    lost?;
    say("5. WorkOS      user.updated   Adaline is renamed Augusta, and this webhook is lost");
    let answer = guide.until("the name whose webhook was lost", &token, named("Augusta")).await?;
    say(&format!("6. get_auth_user   → 200 {}, read by catch-up", brief(&answer)));

    deactivate_a_member(workos, &guide, &id, &say).await?;

    workos.delete_user(&id).map_err(|fault| TourError(format!("WorkOS rejected a deletion: {fault:?}")))?;
    say("11. WorkOS     user.deleted");
    let gone = |status, body: &Value| status == 404 && body.get("code").and_then(Value::as_str) == Some("user_deleted");
    guide.until("the deletion", &token, gone).await?;
    say("12. get_auth_user  → 404 user_deleted");

    let before = workos.attempts().len();
    let _ = workos.emit("user.updated", answer);
    workos.wait_until_delivered().await;
    if workos.attempts().len() == before {
        return Err(TourError("the late update was not delivered".to_owned()));
    }
    say("13. WorkOS     user.updated   a late one, after the deletion: accepted, and changes nothing");
    let (status, body) = guide.look_up(&token).await?;
    if !gone(status, &body) {
        return Err(TourError(format!("a late update revived the user: {status}")));
    }
    say("14. get_auth_user  → 404 user_deleted: deleted stays deleted");
    Ok(())
}

/// Makes the user a member of an organization, and deactivates the membership. The token stays valid, and the service refuses it.
async fn deactivate_a_member(
    workos: &SimulatedWorkos,
    guide: &Guide<'_>,
    user_id: &str,
    say: &impl Fn(&str),
) -> Result<(), TourError> {
    let rejected = |fault| TourError(format!("WorkOS rejected a membership: {fault:?}"));
    let id_of = |created: &Value| created.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let organization = workos.create_organization(&object(json!({"name": "Analytical Engines"}))).map_err(rejected)?;
    let organization_id = id_of(&organization);
    let membership = workos.add_membership(user_id, &organization_id, &["admin"]).map_err(rejected)?;
    let token = workos.sign_in_to(user_id, &organization_id).map_err(rejected)?;
    say(
        "7. WorkOS      organization.created, organization_membership.created   Augusta is an admin of Analytical Engines",
    );
    let is_admin = |status, body: &Value| status == 200 && body.get("roles") == Some(&json!(["admin"]));
    let session = guide.until_at("/auth/session", "the membership", &token, is_admin).await?;
    let shown = ["roles", "permissions"].map(|name| format!("{name} {}", session.get(name).unwrap_or(&Value::Null)));
    say(&format!("8. /auth/session with a token of that organization   → 200 {}", shown.join(", ")));
    workos.deactivate_membership(&id_of(&membership)).map_err(rejected)?;
    say("9. WorkOS      organization_membership.updated   Augusta is deactivated; the token stays valid for minutes");
    let refused =
        |status, body: &Value| status == 403 && body.get("code").and_then(Value::as_str) == Some("membership_inactive");
    guide.until_at("/auth/session", "the refusal", &token, refused).await?;
    say("10. /auth/session with the same token   → 403 membership_inactive");
    workos.delete_organization(&organization_id).map_err(rejected)
}

struct Guide<'a> {
    client: reqwest::Client,
    url: &'a str,
}

impl Guide<'_> {
    async fn look_up(&self, token: &str) -> Result<(u16, Value), TourError> {
        self.get("/auth/user", token).await
    }

    async fn get(&self, path: &str, token: &str) -> Result<(u16, Value), TourError> {
        let unreachable = |error: reqwest::Error| TourError(format!("the service does not answer: {error}"));
        let request = self.client.get(format!("{}{path}", self.url)).bearer_auth(token);
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.map_err(unreachable)?))
    }

    async fn until(&self, what: &str, token: &str, done: impl Fn(u16, &Value) -> bool) -> Result<Value, TourError> {
        self.until_at("/auth/user", what, token, done).await
    }

    async fn until_at(
        &self,
        path: &str,
        what: &str,
        token: &str,
        done: impl Fn(u16, &Value) -> bool,
    ) -> Result<Value, TourError> {
        let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
        loop {
            let (status, body) = self.get(path, token).await?;
            if done(status, &body) {
                return Ok(body);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(TourError(format!("timed out waiting for {what}; the last answer was {status} {body}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// Returns the most important fields of the user, for one line.
fn brief(user: &Value) -> String {
    let shown = ["id", "email", "name", "metadata", "updated_at"];
    let shown = shown.iter().filter_map(|name| Some(((*name).to_owned(), user.get(*name)?.clone())));
    Value::Object(shown.collect()).to_string()
}
