"""`app`, for any ASGI server: `uvicorn cbemail.main:app`. Settings come from the environment and `.env`."""

from pathlib import Path

from cbemail.app import create_app
from cbemail.logs import configure_logging
from cbemail.settings import Settings, load_environ

_settings = Settings.from_environ(load_environ(Path.cwd()))
configure_logging(_settings.log_level, _settings.log_format)
app = create_app(_settings)
