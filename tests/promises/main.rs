//! The promises, tested against a real PostgreSQL and over real HTTP. One binary, so that it links once.
//!
//! Each promise of the README, and the tests that prove it. `simulation::after_all_faults_every_row_equals_workos`
//! plays the promises 1 to 6, 8 and 10 together.
//!
//! 1. **Acknowledged means committed.**
//!    - `crash::nothing_acknowledged_is_lost_to_kill_9`
//!    - `receiver::every_event_workos_sends_is_committed_and_acknowledged`
//!    - `receiver::a_body_that_breaks_off_stores_nothing`
//!    - `receiver::a_shutdown_commits_and_answers_what_has_begun`
//!    - `upgrades::a_rolling_deployment_under_load_refuses_nothing_and_loses_nothing`
//!    - `upgrades::the_previous_release_serves_on_the_new_schema_and_is_replaced_without_a_refusal`
//!    - `failover::with_synchronous_replication_a_failover_under_load_loses_nothing_that_was_acknowledged`
//!    - `group_commit::events_that_arrive_during_a_commit_share_the_next_transaction`
//!    - `group_commit::a_caller_that_stops_waiting_cancels_no_event_of_the_batch`
//! 2. **Nothing verified is dropped.**
//!    - `receiver::names_in_any_script_and_characters_that_postgres_rejects_are_stored_and_returned`
//!    - `receiver::verified_but_unusable_events_are_quarantined_whole_and_acknowledged`
//!    - `inbox::quarantined_events_are_listed_shown_and_retried_and_stay_if_the_retry_fails`
//!    - `backfill::an_unreadable_page_of_users_is_quarantined_and_skipped`
//!    - `catch_up_oddities::an_unreadable_last_item_is_quarantined_and_never_becomes_the_cursor`
//!    - `reconcile::a_snapshot_that_cannot_be_applied_is_quarantined_once_and_shown`
//!    - `group_commit::an_event_that_postgres_refuses_is_quarantined_and_its_neighbours_are_applied`
//!    - `redaction::no_secret_is_stored_whether_an_event_is_applied_or_quarantined`
//!    - `redaction::payloads_of_an_earlier_release_are_cleaned_once_in_batches`
//!    - `group_commit_of_kinds::an_event_that_postgres_refuses_in_a_group_of_all_kinds_is_quarantined_alone_and_retried`
//!    - `kinds::organizations_and_memberships_without_required_fields_are_quarantined_whole_and_retried`
//!    - `kinds::a_kind_that_is_off_changes_no_row_and_what_was_ignored_is_replayed_once_it_is_on`
//! 3. **Any order, any duplication, same table.**
//!    - `convergence::any_order_any_duplication_any_concurrency_same_table`
//!    - `convergence_of_kinds::users_organizations_and_memberships_converge_in_any_order_any_duplication_any_concurrency`
//!    - `convergence::a_scan_that_writes_only_what_differs_joins_like_any_other_observation`
//!    - `convergence::concurrent_batches_over_the_same_users_never_deadlock`
//!    - `standby::a_follower_that_starts_from_a_list_of_the_standby_ends_with_the_table_of_the_primary`
//!    - `sign_ins::the_latest_session_counts_in_any_order_before_and_after_its_user`
//!    - `failover::whether_there_is_a_pooler_is_known_for_each_host`
//!    - `pooler::no_client_ever_sees_the_result_of_another_ones_statement`
//!    - `pooler::the_tests_of_the_promises_pass_through_a_pooler_in_transaction_mode`
//! 4. **Deleted stays deleted, and erased.**
//!    - `erasure::everything_on_the_list_is_erased_by_a_deletion`
//!    - `erasure::no_table_with_personal_data_is_missing_from_the_list_of_what_is_erased`
//!    - `auth_session::the_deletion_of_a_user_ends_every_membership_also_one_that_arrives_later`
//!    - `standby::a_list_from_a_paused_standby_is_complete_up_to_its_position_and_lookups_use_the_primary`
//!    - `erasure::a_delete_before_the_create_leaves_nothing`
//!    - `erasure::a_delete_in_flight_when_the_update_comes_leaves_nothing`
//!    - `erasure::an_update_in_flight_when_the_delete_comes_leaves_nothing`
//!    - `ended_memberships::a_membership_whose_own_deletion_is_in_flight_ends_once_with_its_user`
//!    - `ended_memberships::a_membership_in_flight_when_its_user_is_deleted_ends_in_any_order`
//!    - `ended_memberships::in_a_batch_with_a_refused_neighbour_a_membership_ends_once_with_its_user`
//!    - `handlers::the_message_of_a_failure_is_erased_with_its_user_in_any_order`
//!    - `reconcile::a_tombstone_workos_contradicts_is_reported_and_stays`
//! 5. **An outage is caught up.**
//!    - `catch_up::a_cursor_workos_no_longer_serves_is_replaced_and_nothing_is_missed`
//!    - `failover::with_asynchronous_replication_what_a_failover_lost_is_read_again_from_workos`
//!    - `catch_up::an_outage_beyond_retention_reads_all_remaining_events_and_requires_a_reconcile`
//!    - `catch_up::a_webhook_never_moves_the_cursor_and_catch_up_confirms_it`
//!    - `catch_up::a_page_in_descending_order_is_applied_and_does_not_move_the_cursor`
//!    - `polling::exactly_one_process_polls_and_a_stale_one_cannot_move_the_cursor`
//!    - `polling::when_the_polling_process_is_killed_another_takes_over`
//! 6. **A deletion is confirmed before it is inferred.**
//!    - `reconcile::too_many_inferred_deletions_stop_until_the_operator_accepts_them`
//!    - `reconcile::a_user_created_during_the_scan_or_missing_from_the_list_is_not_deleted`
//!    - `reconcile::an_empty_list_infers_no_deletion_even_with_permission`
//!    - `organizations_reconcile::what_is_not_listed_but_live_at_workos_stays`
//!    - `organizations_reconcile::an_empty_list_or_a_missing_route_deletes_nothing`
//!    - `role_lists::a_wrong_route_or_a_short_list_deletes_no_role`
//!    - `backfill::the_wrong_key_changes_nothing_and_says_why`
//!    - `catch_up::a_key_of_another_environment_is_detected_before_anything_is_read`
//!    - `emulator::a_missing_route_is_no_unknown_user_and_confirms_no_deletion`
//! 7. **The token decides nothing before its signature.**
//!    - `lookups::every_access_token_gets_its_expected_verdict`
//!    - `lookups::hostile_tokens_are_refused_without_harm`
//!    - `lookups::a_refusal_names_the_real_reason`
//!    - `explain::explanation_and_verdict_give_the_same_reason`
//!    - `verified_tokens::every_token_gets_the_same_verdict_again_at_any_time`
//!    - `verified_tokens::a_known_token_is_refused_once_its_key_is_withdrawn_or_replaced`
//!    - `explain::header_log_and_explanation_give_one_reason`
//! 8. **Who must act decides the status.**
//!    - `auth_session::a_membership_that_was_never_seen_is_not_refused_while_it_may_still_arrive`
//!    - `lookups::without_keys_no_user_is_signed_out`
//!    - `lookups::a_source_of_keys_that_panics_is_a_failure_with_a_reason_and_signs_nobody_out`
//!    - `lookups::without_the_database_lookups_are_503_and_the_identity_route_still_answers`
//!    - `receiver::a_signed_body_that_is_not_an_event_is_400_so_that_it_shows_at_workos`
//!    - `actions::a_handler_that_fails_panics_or_hangs_is_503_and_allows_no_sign_in`
//!    - `actions::without_the_database_there_is_no_verdict`
//!    - `outage::a_database_stopped_under_load_is_503_and_comes_back_without_a_restart`
//!    - `standby::a_standby_that_is_too_far_behind_is_not_read_until_it_has_caught_up`
//!    - `standby::reads_continue_while_the_standby_is_killed_and_use_it_again_after_its_restart`
//!    - `standby::a_mark_that_cannot_be_written_fails_no_read`
//!    - `failover::a_primary_that_answers_nothing_any_more_is_left_for_the_promoted_standby`
//!    - `failover::after_one_write_was_refused_no_connection_leads_to_the_demoted_host`
//!    - `outage::a_full_disk_and_a_lost_privilege_are_503`
//!    - `outage::a_read_only_server_is_503`
//!    - `secret_rotation::rotating_every_secret_under_load_refuses_nothing`
//!    - `secret_rotation::rotating_what_an_action_needs_under_load_refuses_no_action`
//!    - `draining::replacing_both_processes_behind_a_proxy_that_polls_readiness_refuses_nothing_under_load`
//!    - `draining::after_the_delay_the_public_listener_closes_and_the_operators_listener_closes_last`
//! 9. **No personal data and no secret.**
//!    - `logs::a_whole_run_at_trace_logs_no_personal_data_and_no_secret`
//!    - `polling::the_log_of_everything_that_is_read_contains_no_personal_data`
//!    - `actions::a_denial_is_counted_and_logged_by_rule_without_personal_data`
//!    - `changes::a_change_names_fields_event_and_origin_and_holds_nothing_personal`
//!    - `action_endpoint::no_request_uses_a_proxy_and_the_log_contains_no_personal_data`
//!    - `status_page::failing_handlers_and_quarantined_events_are_shown_escaped_and_without_personal_data`
//! 10. **Everything is bounded, and nothing stops for good.**
//!    - `group_commit::a_locked_user_delays_only_its_own_events`
//!    - `group_commit_of_kinds::a_locked_organization_delays_only_its_own_events`
//!    - `ended_memberships::a_user_with_many_memberships_ends_in_bounded_batches_and_is_no_member_from_the_start`
//!    - `group_commit::a_batch_that_waits_for_another_transaction_delays_no_later_one`
//!    - `group_commit::a_full_queue_is_answered_503_at_once_and_the_rest_is_applied`
//!    - `group_commit::a_panic_in_a_batch_fails_no_other_event_and_leaves_nothing_counted`
//!    - `group_commit::an_event_whose_deadline_has_passed_is_not_attempted_again`
//!    - `exhaustion::idle_connections_in_any_number_block_no_other_client`
//!    - `exhaustion::unfinished_bodies_make_room_oldest_first_and_cost_no_other_route_anything`
//!    - `exhaustion::a_client_that_never_reads_is_cut_off`
//!    - `receiver::endless_and_slow_bodies_end_in_413_and_408_and_delay_no_other_request`
//!    - `settings::a_process_opens_no_more_connections_than_configured`
//!    - `database_failures::a_caller_that_gives_up_at_any_moment_leaves_no_transaction_open`
//!    - `grouped_reads::a_caller_that_stops_waiting_affects_no_other`
//!    - `catch_up::a_page_that_times_out_is_applied_in_parts`
//!    - `erasure::a_deletion_whose_erasure_times_out_is_committed_and_erased_in_smaller_batches`
//!    - `handlers::a_handler_that_panics_hangs_or_keeps_its_transaction_fails_alone`
//!    - `alerts_fire::a_background_job_that_panics_fires_its_alert_is_shown_and_recovers`
//!    - `inbox::a_step_of_housekeeping_that_fails_prevents_no_other`
//!    - `role_lists::an_organization_that_deletes_many_roles_does_not_delay_others`
//!    - `status_page::many_viewers_cost_one_reading_and_a_blocked_reading_fails_no_page`
//!    - `plans_at_scale::maintenance_never_reads_a_whole_table_at_a_million_rows`
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod action_endpoint;
mod action_verdicts;
mod actions;
mod alerts;
mod alerts_fire;
mod auth_session;
mod authorization;
mod authorization_plans;
mod backfill;
mod catch_up;
mod catch_up_oddities;
mod changes;
mod command_line;
mod convergence;
mod convergence_of_kinds;
mod crash;
mod database_failures;
mod database_url;
mod dev;
mod doctor;
mod documents;
mod draining;
mod embedding;
mod emulator;
mod ended_memberships;
mod erasure;
mod exhaustion;
mod explain;
mod failover;
mod failure_words;
mod followers;
mod group_commit;
mod group_commit_of_kinds;
mod grouped_reads;
mod guides;
mod handlers;
mod handlers_in_sql;
mod hangup;
mod hostile_schema;
mod http_caching;
mod image;
mod inbox;
mod kinds;
mod layers;
mod leases;
mod logs;
mod lookups;
mod memberships_api;
mod migration_rules;
mod migrations;
mod migrations_by_hand;
mod openapi;
mod openapi_workos;
mod organizations_api;
mod organizations_backfill;
mod organizations_reconcile;
mod outage;
mod packaging;
mod plans;
mod plans_at_scale;
mod polling;
mod pooler;
mod private_postgres;
mod progress;
mod proxies;
mod receiver;
mod reconcile;
mod redaction;
mod reverse_proxy;
mod role_lists;
mod roles_api;
mod search_path;
mod secret_rotation;
mod secrets;
mod settings;
mod sign_ins;
mod signature;
mod simulated_organizations;
mod simulated_routes;
mod simulated_workos;
mod simulation;
mod sql;
mod standby;
mod status_page;
mod status_page_in_chromium;
mod support;
mod systemd;
mod upgrades;
mod user_management;
mod verified_tokens;
mod webhook_register;
