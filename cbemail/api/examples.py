"""A request body for each operation that takes one, as the OpenAPI document shows it. Every secret is a placeholder."""

from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "create_session": {
        "email": "joe@example.org",
        "password": "your password",
        "imap": {"host": "imap.example.org", "port": 993, "security": "tls"},
        "smtp": {"host": "smtp.example.org", "port": 465, "security": "tls"},
    },
    "issue_token": {"refresh_token": "your refresh token"},
    "open_gate": {"pin": "your PIN"},
    "replace_credentials": {"password": "your new password"},
    "create_folder": {"name": "Projects/2026"},
    "change_folder": {"name": "Archive/Projects/2026"},
    "append_message": {"to": "ann@example.org", "subject": "A draft", "body": "Dear Ann,"},
    "change_messages": {"action": "move", "uids": [7, 8, 12], "destination": "\\Trash"},
    "move_message": {"destination": "\\Archive"},
    "copy_message": {"destination": "Projects/2026"},
    "mark_message": {"read": True, "add_flags": ["$Forwarded"]},
    "send_batch": {
        "name": "Invitations",
        "template": {
            "subject": "{{ name }}, you are invited",
            "body": 'Dear {{ name | default: "friend" }},\n\nyour code is {{ code }}.\n\nJoe',
        },
        "recipients": [
            {"to": "Ann <ann@example.org>", "variables": {"name": "Ann", "code": "A1"}},
            {"to": "bob@example.org", "variables": {"code": "B2"}, "key": "customer-7"},
        ],
        "rate_per_minute": 300,
    },
    "send_message": {
        "to": ["Ann <ann@example.org>"],
        "subject": "The figures",
        "body": "Dear Ann,\n\nplease find them attached.\n\nJoe",
        "attachments": [{"filename": "figures.csv", "content": "YSxiCjEsMgo="}],
    },
}
