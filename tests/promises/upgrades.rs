//! Two releases at the same time: the previous one serves on the schema of this one, and a deployment replaces processes under
//! load.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::auth_session::organization;
use crate::support::binary::BINARY;
use crate::support::deployment::Deployment;

/// The binary of the previous release, which `.ci/upgrade` builds.
fn previous_binary() -> Option<PathBuf> {
    let found = std::env::var_os("PREVIOUS_BINARY").map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "PREVIOUS_BINARY is not set, and .ci/run sets it");
        // Not println!, whose output the test runner hides when a test passes.
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: the previous release is not built (.ci/upgrade builds and tests it)");
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_deployment_under_load_refuses_nothing_and_loses_nothing() {
    let binary = Path::new(BINARY);
    let mut deployment = Deployment::start(binary).await;
    let load = deployment.load().await;
    deployment.serves().await;
    deployment.migrate(binary).await;
    for _ in 0..3 {
        deployment.replace_oldest(binary).await;
        deployment.serves().await;
    }
    load.check(&deployment.pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_previous_release_serves_on_the_new_schema_and_is_replaced_without_a_refusal() {
    let Some(previous) = previous_binary() else { return };
    let binary = Path::new(BINARY);
    let mut deployment = Deployment::start(&previous).await;
    let load = deployment.load().await;
    deployment.serves().await;
    deployment.deliver("organization.created", &organization("org_1", "Acme", 0)).await;
    deployment.migrate(binary).await;
    deployment.serves().await;
    for _ in 0..3 {
        // From the first round to the last one, both releases serve.
        deployment.replace_oldest(binary).await;
        deployment.serves().await;
    }
    // The rollback: the previous release starts on the new schema, too.
    deployment.replace_oldest(&previous).await;
    deployment.serves().await;
    load.check(&deployment.pool).await;
    // Events of types that the previous release does not know are applied by a replay.
    deployment.run(&["events", "replay", "--since", "1h"]).await;
    let organizations: Vec<String> =
        sqlx::query_scalar("select name from workos.organizations").fetch_all(&deployment.pool).await.unwrap();
    assert_eq!(organizations, ["Acme"]);
}
