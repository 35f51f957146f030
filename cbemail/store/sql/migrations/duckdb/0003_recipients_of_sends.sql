-- Providers limit how many recipients an account may have in a day: what a send counts for there.

alter table outbox_message add column recipients integer default 1;
