//! The promises, tested against a real PostgreSQL and over real HTTP. One binary, so that it links once.
//!
//! Each promise of the README, and the tests that prove it. `simulation::after_the_dust_settles_every_row_is_as_workos_has_it`
//! plays the promises 1 to 6, 8 and 10 together.
//!
//! 1. **Acknowledged means committed.**
//!    - `crash::nothing_acknowledged_is_lost_to_kill_9`
//!    - `receiver::every_event_workos_sends_is_committed_and_acknowledged`
//!    - `receiver::a_body_that_breaks_off_stores_nothing`
//!    - `receiver::a_shutdown_commits_and_answers_what_has_begun`
//!    - `group_commit::events_that_arrive_during_a_commit_share_the_next_transaction`
//!    - `group_commit::a_caller_that_goes_away_cancels_no_event_of_the_batch`
//! 2. **Nothing verified is dropped.**
//!    - `receiver::names_in_any_script_and_what_postgres_refuses_arrive_and_leave_intact`
//!    - `receiver::verified_but_unusable_events_are_quarantined_whole_and_acknowledged`
//!    - `inbox::the_quarantine_is_listed_shown_retried_and_left_when_nothing_helped`
//!    - `backfill::a_page_of_users_that_cannot_be_read_is_quarantined_and_passed`
//!    - `catch_up_oddities::an_unreadable_last_item_is_quarantined_and_never_becomes_the_cursor`
//!    - `reconcile::a_snapshot_that_cannot_be_applied_is_quarantined_once_and_shown`
//!    - `group_commit::an_event_that_postgres_refuses_is_quarantined_and_its_neighbours_are_applied`
//! 3. **Any order, any duplication, same table.**
//!    - `convergence::any_order_any_duplication_any_concurrency_same_table`
//!    - `convergence::a_scan_that_writes_only_what_differs_joins_like_any_other_observation`
//!    - `convergence::concurrent_batches_over_the_same_users_never_deadlock`
//!    - `sign_ins::the_latest_session_counts_in_any_order_before_its_user_and_behind_it`
//! 4. **Deleted stays deleted, and erased.**
//!    - `erasure::everything_on_the_list_is_erased_by_a_deletion`
//!    - `erasure::no_table_with_personal_data_is_missing_from_the_list_of_what_is_erased`
//!    - `erasure::a_delete_before_the_create_leaves_nothing`
//!    - `erasure::a_delete_in_flight_when_the_update_comes_leaves_nothing`
//!    - `erasure::an_update_in_flight_when_the_delete_comes_leaves_nothing`
//!    - `handlers::a_failures_message_goes_with_its_user_whichever_comes_first`
//!    - `reconcile::a_tombstone_workos_contradicts_is_reported_and_stays`
//! 5. **An outage is caught up.**
//!    - `catch_up::a_cursor_workos_no_longer_serves_is_replaced_and_nothing_is_missed`
//!    - `catch_up::an_outage_beyond_retention_begins_with_what_there_is_and_wants_a_reconcile`
//!    - `catch_up::a_webhook_never_moves_the_cursor_and_catch_up_confirms_it`
//!    - `catch_up::a_page_that_runs_backwards_is_applied_and_moves_nothing`
//!    - `polling::exactly_one_process_polls_and_a_stale_one_cannot_move_the_cursor`
//!    - `polling::when_the_polling_process_is_killed_another_takes_over`
//! 6. **A deletion is confirmed before it is inferred.**
//!    - `reconcile::too_many_inferred_deletions_stop_until_the_operator_says_so`
//!    - `reconcile::a_user_born_during_the_walk_or_left_out_of_the_list_is_never_buried`
//!    - `reconcile::a_walk_that_lists_nobody_infers_nothing_whatever_was_said`
//!    - `backfill::the_wrong_key_changes_nothing_and_says_why`
//!    - `catch_up::another_environments_key_is_noticed_before_anything_is_read`
//!    - `emulator::a_missing_route_is_no_unknown_user_and_confirms_no_deletion`
//! 7. **The token decides nothing before its signature.**
//!    - `lookups::every_access_token_gets_the_verdict_it_must`
//!    - `lookups::hostile_tokens_are_refused_and_harm_nobody`
//!    - `lookups::a_refusal_names_the_real_reason`
//!    - `explain::explanation_and_verdict_cannot_drift`
//!    - `verified_tokens::every_token_gets_the_same_verdict_again_at_any_time`
//!    - `verified_tokens::a_known_token_is_refused_once_its_key_is_withdrawn_or_replaced`
//!    - `explain::header_log_and_explanation_give_one_reason`
//! 8. **Who must act decides the status.**
//!    - `lookups::without_keys_nobody_is_signed_out`
//!    - `lookups::with_the_database_away_lookups_are_503_and_the_token_still_answers`
//!    - `receiver::a_signed_body_that_is_no_event_is_400_so_that_it_shows_at_workos`
//!    - `actions::a_handler_that_fails_panics_or_hangs_is_ours_and_allows_nobody`
//!    - `actions::without_the_database_there_is_no_verdict`
//!    - `outage::a_database_stopped_under_load_is_503_and_comes_back_without_a_restart`
//!    - `outage::a_full_disk_and_a_lost_privilege_are_ours_to_mend`
//!    - `outage::a_read_only_node_is_ours_to_mend`
//! 9. **No personal data and no secret.**
//!    - `logs::a_whole_run_at_trace_names_nobody_and_betrays_nothing`
//!    - `polling::a_log_of_everything_that_is_read_names_nobody`
//!    - `actions::a_denial_is_counted_and_logged_by_rule_without_naming_anybody`
//!    - `changes::a_change_names_fields_event_and_origin_and_holds_nothing_personal`
//!    - `action_endpoint::proxies_of_the_environment_see_nothing_and_the_log_names_nobody`
//! 10. **Everything is bounded, and nothing stops for good.**
//!    - `group_commit::a_locked_user_delays_only_its_own_events`
//!    - `group_commit::a_full_queue_is_answered_503_at_once_and_the_rest_is_applied`
//!    - `exhaustion::idle_connections_in_any_number_keep_nobody_out`
//!    - `exhaustion::unfinished_bodies_make_room_oldest_first_and_cost_no_other_route_anything`
//!    - `exhaustion::a_client_that_never_reads_is_cut_off`
//!    - `receiver::endless_and_slow_bodies_end_in_413_and_408_and_hold_up_nobody`
//!    - `settings::a_process_opens_no_more_connections_than_configured`
//!    - `database_failures::a_caller_that_gives_up_at_any_moment_leaves_no_transaction_open`
//!    - `grouped_reads::a_caller_that_goes_away_harms_no_other`
//!    - `catch_up::a_page_that_times_out_is_applied_in_parts`
//!    - `erasure::a_deletion_whose_erasure_times_out_is_committed_and_erased_in_smaller_batches`
//!    - `handlers::a_handler_that_panics_hangs_or_keeps_its_transaction_fails_alone`
//!    - `inbox::a_step_of_housekeeping_that_fails_prevents_no_other`
//!    - `plans_at_scale::maintenance_never_reads_a_whole_table_at_a_million_rows`
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod action_endpoint;
mod action_verdicts;
mod actions;
mod backfill;
mod catch_up;
mod catch_up_oddities;
mod changes;
mod command_line;
mod convergence;
mod crash;
mod database_failures;
mod dev;
mod documents;
mod embedding;
mod emulator;
mod erasure;
mod exhaustion;
mod explain;
mod followers;
mod group_commit;
mod grouped_reads;
mod guides;
mod handlers;
mod handlers_in_sql;
mod hangup;
mod hostile_schema;
mod http_caching;
mod image;
mod inbox;
mod layers;
mod leases;
mod logs;
mod lookups;
mod migrations;
mod openapi;
mod outage;
mod plans;
mod plans_at_scale;
mod polling;
mod pooler;
mod private_postgres;
mod progress;
mod proxies;
mod receiver;
mod reconcile;
mod search_path;
mod settings;
mod sign_ins;
mod signature;
mod simulated_workos;
mod simulation;
mod sql;
mod support;
mod user_management;
mod verified_tokens;
