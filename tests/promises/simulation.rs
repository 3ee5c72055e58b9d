//! Nothing is lost: random histories, random faults, crashes between any two steps, two replicas, one thread.
//!
//! A seed decides everything that is decided here. `SEED=17 cargo test simulation` plays one again, `SEEDS=1000` plays many.

mod replica;
mod world;

use std::time::{Duration, Instant};

use authkit_sync::dev::postgres::{Data, PrivatePostgres, Programs};
use world::{Feeds, World};

/// Seeds played by the test command, and how long they may take together.
const SEEDS: u64 = 60;
const BUDGET: Duration = Duration::from_secs(90);

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}

#[tokio::test]
async fn after_the_dust_settles_every_row_is_as_workos_has_it() {
    let programs = Programs::find().expect("PostgreSQL's programs: apt-get install postgresql");
    let mut server = PrivatePostgres::start(programs, &Data::Throwaway, &[]).unwrap();
    let (first, last, budget) = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => (seed, seed, Duration::MAX),
        (None, Some(seeds)) => (1, seeds, Duration::MAX),
        (None, None) => (1, SEEDS, BUDGET),
    };
    let began = Instant::now();
    let mut played = 0;
    for seed in first..=last {
        if began.elapsed() > budget {
            break;
        }
        let feeds = match seed % 4 {
            0 => Feeds::WebhooksOnly,
            1 => Feeds::CatchUpOnly,
            _ => Feeds::Both,
        };
        let told = Replay(seed);
        let mut world = World::begin(seed, feeds, &mut server).await;
        world.live().await;
        world.settle().await;
        world.end().await;
        std::mem::forget(told);
        played += 1;
    }
    println!("{played} seeds in {:?}", began.elapsed());
    assert!(played > 0);
}

/// Says how to play a failing seed again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        eprintln!("to play this again: SEED={} cargo test after_the_dust_settles", self.0);
    }
}
