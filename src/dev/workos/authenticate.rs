//! `POST /user_management/authenticate`: a sign-in with a password, and the choice of an organization.

use axum::Json;
use axum::extract::State as Shared;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, text};
use super::fault::Fault;
use super::state::State;
use super::tokens::TokenRequest;

/// The grant type of the second request of a user with several organizations.
const ORGANIZATION_SELECTION: &str = "urn:workos:oauth:grant-type:organization-selection";

/// Precedes the user ID in a pending token. Nothing is protected here.
const PENDING: &str = "pending_";

/// Signs a user in with any password, because nothing is protected. If the user has one organization, the session is in that
/// organization. A user with several organizations must select one.
pub(super) async fn authenticate(
    Shared(workos): Shared<SimulatedWorkos>,
    Json(given): Json<Object>,
) -> Result<Json<Value>, Fault> {
    if text(&given, "client_id") != workos.client_id() || text(&given, "client_secret") != workos.api_key() {
        return Err(Fault::bad("invalid_client", "Invalid client ID or client secret."));
    }
    let (user, org_id) = match text(&given, "grant_type") {
        "password" => {
            let user = workos.read(|state| state.user_by("email", text(&given, "email")));
            let user = user.ok_or_else(|| Fault::grant("There is no user with this email address."))?;
            let organization = workos.read(|state| state.only_organization(&user))?;
            (user, organization)
        }
        ORGANIZATION_SELECTION => {
            let pending = text(&given, "pending_authentication_token").strip_prefix(PENDING);
            let user = workos.read(|state| state.user(pending.unwrap_or_default()));
            let user = user.map_err(|_| Fault::grant("The pending authentication token is not valid."))?;
            (user, Some(text(&given, "organization_id").to_owned()))
        }
        _ => {
            let message = "The simulated WorkOS signs in with the grant types password and organization-selection.";
            return Err(Fault::bad("unsupported_grant_type", message));
        }
    };
    let id = user.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let access_token = workos.issue_token(&id, TokenRequest { org_id: org_id.clone(), ..TokenRequest::default() })?;
    // As at the real WorkOS, the user in this response has no metadata.
    let mut user = workos.read(|state| state.user(&id))?;
    if let Value::Object(user) = &mut user {
        user.remove("metadata");
    }
    Ok(Json(json!({
        "user": user, "organization_id": org_id, "access_token": access_token,
        "refresh_token": workos.next_id("refresh"), "authentication_method": "Password",
    })))
}

impl State {
    /// Returns the organization of a user with one active membership. A user with several gets an error that lists them.
    fn only_organization(&self, user: &Value) -> Result<Option<String>, Fault> {
        let id = user.get("id").and_then(Value::as_str).unwrap_or_default();
        let memberships = self.memberships.with("user_id", id);
        let active = memberships.filter(|membership| text(membership, "status") == "active");
        let ids: Vec<&str> = active.map(|membership| text(membership, "organization_id")).collect();
        match ids.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some((*one).to_owned())),
            several => {
                let organizations = several.iter().filter_map(|id| self.organizations.get(id));
                let organizations: Vec<Value> = organizations
                    .map(|organization| json!({"id": organization.get("id"), "name": organization.get("name")}))
                    .collect();
                Err(Fault::organization_selection(json!({
                    "code": "organization_selection_required", "message": "Choose an organization to go on.",
                    "pending_authentication_token": format!("{PENDING}{id}"), "organizations": organizations,
                    "user": {"object": "user", "id": id, "email": user.get("email")},
                })))
            }
        }
    }
}
