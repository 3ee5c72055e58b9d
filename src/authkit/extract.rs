//! Extractors for axum 0.8 applications: who is behind this request?

use axum::extract::{FromRef, FromRequestParts, OptionalFromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::AuthKit;
use crate::domain::user::User;
use crate::http::{Rejection, bearer};
use crate::tokens::Identity;

/// The user behind the request's access token, and the token's claims: one signature check and one indexed statement.
///
/// `Option<AuthUser>` is `None` only when there is no `Authorization` header: a bad token is still 401, and our failure
/// 503, so that nobody is taken for a guest by an outage.
///
/// The application's state has to hold an [`AuthKit`]:
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
    /// What the token says.
    pub identity: Identity,
}

impl<S: Send + Sync> FromRequestParts<S> for AuthUser
where
    AuthKit: FromRef<S>,
{
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let authkit = AuthKit::from_ref(state);
        let (user, identity) = authkit.state.lookups.session(bearer(&parts.headers)?).await?;
        Ok(Self { user, identity })
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

/// The token's claims alone: no database is asked, so a deleted user's token passes until it expires.
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
