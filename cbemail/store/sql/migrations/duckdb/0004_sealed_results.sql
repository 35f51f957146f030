-- Answers and results name recipients, and are sealed from here on. Of those that stand in clear, what is told without
-- them is left: the state of the message, from which an answer is made anew.

update idempotency_key set status = null, headers = null, body = null;

update outbox_message set result = null;
