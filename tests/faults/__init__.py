"""Faults done to real processes, servers and networks, and what must be true afterwards.

Nothing that was committed is lost, nothing that was rolled back is seen, an effect in the database happens once, work
goes on by itself, and the log tells what has happened without being flooded. `poe faults` runs these tests, `poe soak`
does harm at random. Where a scenario is tested: in this folder unless a path is given.

| # | what happens | test |
|---|---|---|
| 1 | the broker restarts while it is published to | test_brokers: a_broker_that_restarts |
| 2 | the relay dies after the confirm | test_processes: killed_anywhere [published]; scenarios/test_outbox |
| 3 | a process dies between commit and relay | test_processes: relayed_by_whoever_comes_later; scenarios/test_outbox |
| 4 | a process dies or refuses after it has published | test_processes: refused, [handled]; scenarios/test_outbox |
| 5 | a consumer dies before its ack | test_processes: killed_anywhere [settled]; scenarios/test_killed_consumer |
| 6 | the answer to a commit is lost | test_networks: a_commit_whose_answer_is_lost |
| 7 | the database restarts, connections are killed | test_networks: database_connections; adapters/test_sqlalchemy |
| 8 | a handler always fails, in several workers | test_poison: run_as_often_as_allowed |
| 9 | a message kills its workers | test_poison: kills_each_worker; messaging/test_failures |
| 10 | nobody can read a message | test_poison: nobody_can_read; adapters/test_sqlalchemy_defects |
| 11 | clocks go wrong | test_time: whose_clocks_go_wrong, a_delay_is_as_long |
| 12 | a message comes twice at the same time | messaging/test_deduplication: two_consumers; adapters/test_inbox |
| 13 | a handler is slower than its lease | test_time: slower_than_its_lease, not_renewed; adapters/test_sqlalchemy |
| 14 | a process freezes and thaws | test_processes: frozen |
| 15 | a batch fails in part | messaging/test_outbox, scenarios/test_outbox, adapters/test_rabbitmq_publishing |
| 16 | a queue is deleted while it is consumed | test_brokers: a_queue_that_is_deleted; adapters/test_rabbitmq |
| 17 | the broker has no patience with a slow handler | test_brokers: slower_than_the_broker_is_patient |
| 18 | the broker has no memory | test_brokers: without_memory; adapters/test_rabbitmq_publishing |
| 19 | a network freezes | test_networks: freezes_in_silence; adapters/test_rabbitmq, test_rabbitmq_publishing |
| 20 | the broker is down at start | test_networks: while_the_broker_is_down; web/test_edge, web/test_health |
| 21 | the disk is full | test_databases: a_full_disk |
| 22 | the schema does not fit | adapters/test_sqlalchemy: missing_table, missing_column |
| 23 | no queue takes a message, or it is full | test_brokers: no_queue_takes, a_full_queue |
| 24 | the broker limits deliveries | test_brokers: a_limit_of_deliveries; adapters/test_rabbitmq |
| 25 | a message cannot be parked | test_poison: cannot_be_parked; messaging/test_failures, messaging/test_outbox |
| 28 | a leader freezes, another one takes over, the first one thaws | test_projections: frozen |
| 29 | the connection dies that listens | adapters/test_sqlalchemy: listening_survives |
| 30 | workers are told to stop under load | test_processes: told_to_stop; scenarios/test_outbox, cli/test_run |
| 31 | transactions collide | messaging/test_retries: deadlock, serialization; adapters/test_sqlalchemy |
| 32 | a projection, or its rebuild, is killed before its checkpoint | test_projections: e14, scenario_32 |
| 33 | somebody has locked the SQLite file | test_databases: somebody_else_has_locked |
| 35 | a message is too large | scenarios/test_outbox: too_large; test_brokers: larger_than_the_server_allows |
| 36 | messages became due while nothing ran | test_time: due_while_nothing_ran |
| 37 | user code holds all connections | test_databases: holds_all_connections |
| 38 | a request is broken off | test_requests |
| 39 | a consumer dies while it holds what is to stay in order | test_order; adapters/test_rabbitmq_order |

26, 27 and 34 belong to event sourcing and tenants.
"""
