//! Extractors for axum 0.8 applications: the user and the claims of a request.

use axum::extract::{FromRef, FromRequestParts, OptionalFromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::AuthKit;
use crate::domain::membership::Membership;
use crate::domain::organization::Organization;
use crate::domain::user::User;
use crate::http::{Rejection, bearer};
use crate::lookup::Session;
use crate::tokens::Identity;

/// Extracts the user and the claims of the request's access token, and what the user may do in the token's organization, with one
/// signature check and one indexed statement.
///
/// A token whose session was revoked is refused with 401. If memberships are synced, a token whose user is not an active member of
/// its organization is refused with 403.
///
/// `Option<AuthUser>` is `None` only if the request has no `Authorization` header. A bad token is still 401 and a failure of the
/// service 503, so an outage does not turn users into guests.
///
/// The application's state must contain an [`AuthKit`]:
///
/// ```
/// use authkit_sync::{AuthKit, AuthUser};
/// use axum::extract::FromRef;
/// use axum::{Router, routing::get};
///
/// #[derive(Clone)]
/// struct App {
///     authkit: AuthKit,
/// }
///
/// impl FromRef<App> for AuthKit {
///     fn from_ref(app: &App) -> Self {
///         app.authkit.clone()
///     }
/// }
///
/// async fn hello(AuthUser { user, .. }: AuthUser) -> String {
///     format!("hello {}", user.email)
/// }
///
/// async fn greet(user: Option<AuthUser>) -> String {
///     user.map_or_else(|| "hello guest".to_owned(), |caller| format!("hello {}", caller.user.email))
/// }
///
/// let routes: Router<App> = Router::new().route("/hello", get(hello)).route("/greet", get(greet));
/// ```
#[derive(Clone, Debug)]
pub struct AuthUser {
    /// The live user.
    pub user: User,
    /// The claims of the token.
    pub identity: Identity,
    /// The token's organization. `None` if the token has none, or if memberships are not synced.
    pub organization: Option<Organization>,
    /// The active membership of the user in the organization.
    pub membership: Option<Membership>,
    /// The current slugs of the membership's roles. The token's claims may be older.
    pub roles: Vec<String>,
    /// The current slugs of the permissions of these roles.
    pub permissions: Vec<String>,
}

impl AuthUser {
    /// Returns whether the user currently has this permission in the token's organization, according to the database.
    #[must_use]
    pub fn has_permission(&self, slug: &str) -> bool {
        self.permissions.iter().any(|permission| permission == slug)
    }

    /// Returns whether the user currently has this role in the token's organization, according to the database.
    #[must_use]
    pub fn has_role(&self, slug: &str) -> bool {
        self.roles.iter().any(|role| role == slug)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for AuthUser
where
    AuthKit: FromRef<S>,
{
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let authkit = AuthKit::from_ref(state);
        let session = authkit.state.lookups.session(bearer(&parts.headers)?).await?;
        let Session { user, identity, organization, membership, roles, permissions } = session;
        Ok(Self { user, identity, organization, membership, roles, permissions })
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for AuthUser
where
    AuthKit: FromRef<S>,
{
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Rejection> {
        if !parts.headers.contains_key(AUTHORIZATION) {
            return Ok(None);
        }
        <Self as FromRequestParts<S>>::from_request_parts(parts, state).await.map(Some)
    }
}

/// Extracts only the token's claims. The database is not used, so the token of a deleted user is accepted until it expires.
impl<S: Send + Sync> FromRequestParts<S> for Identity
where
    AuthKit: FromRef<S>,
{
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let authkit = AuthKit::from_ref(state);
        Ok(authkit.identity(bearer(&parts.headers)?).await?)
    }
}
