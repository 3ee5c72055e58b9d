//! Measures requests to WorkOS.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Response, Url};

use super::{Api, date_of};
use crate::metrics::Metrics;
use crate::workos::http::why;

/// The segments of WorkOS's paths. Others are IDs.
const SEGMENTS: [&str; 11] = [
    "authorization",
    "events",
    "external_id",
    "organization_memberships",
    "organizations",
    "permissions",
    "roles",
    "sessions",
    "user_management",
    "users",
    "webhook_endpoints",
];

/// Returns the path of a request without IDs, as a label.
pub(super) fn endpoint(url: &Url) -> String {
    let segments = url.path_segments().into_iter().flatten();
    segments.fold(String::new(), |path, segment| {
        let segment = if SEGMENTS.contains(&segment) { segment } else { "{id}" };
        format!("{path}/{segment}")
    })
}

impl Api {
    /// Measures its requests in these metrics.
    pub(crate) fn measured(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// Records a response, or why there is none.
    pub(super) fn measure(&self, endpoint: &str, response: &reqwest::Result<Response>, took: Duration) {
        let Some(metrics) = &self.metrics else { return };
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                self.contact.failed(why(error), self.clocks.now());
                let why = if error.is_timeout() { "timed_out" } else { "failed" };
                return metrics.workos_request(endpoint, why, took);
            }
        };
        metrics.workos_request(endpoint, response.status().as_str(), took);
        self.contact.answered(response.status().as_u16(), self.clocks.now());
        match response.status().as_u16() {
            401 | 403 => metrics.api_key_refused(true),
            200..=299 => metrics.api_key_refused(false),
            _ => {}
        }
        if let Some(date) = date_of(response.headers()) {
            metrics.clock_ahead("workos", self.clocks.ahead_of(date));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_contains_no_id() {
        for (path, expected) in [
            ("/events?after=event_1", "/events"),
            ("/user_management/users/user_01ABC", "/user_management/users/{id}"),
            ("/organizations/org_1/roles", "/organizations/{id}/roles"),
            ("/user_management/users/external_id/somebody%2Fx", "/user_management/users/external_id/{id}"),
        ] {
            let url = Url::parse(&format!("https://api.workos.com{path}")).unwrap();
            assert_eq!(endpoint(&url), expected);
        }
    }
}
