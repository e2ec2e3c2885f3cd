"""What the tests ask of Grafana, answered from the files that Grafana would read, where it does not install.

    grafana server --homepath=... --config=FILE

It reads the configuration, both kinds of provisioning and the password as Grafana does, and fails where they do not fit
together. That the real Grafana draws the dashboard is not shown by it.
"""

import base64
import configparser
import json
import os
import re
import sys
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


def options(words: list[str]) -> dict[str, str]:
    """--name=value words after `server`."""
    if words[:1] != ["server"]:
        raise SystemExit(f"only `grafana server` is known here, not {words}")
    return dict(word.removeprefix("--").split("=", 1) for word in words[1:])


def provisioned(folder: Path, key: str) -> list[dict[str, Any]]:
    """What lies under a key in all files of a folder, with $VARIABLES of the environment filled in."""
    texts = [path.read_text() for path in sorted(folder.glob("*.yml"))]
    return [entry for text in texts for entry in yaml.safe_load(os.path.expandvars(text))[key]]


def main(words: list[str]) -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(Path(options(words)["config"]).read_text())
    place = re.fullmatch(r"\$__file\{(.*)\}", settings["security"]["admin_password"])
    assert place is not None, "the password is to come from a file"
    login = base64.b64encode(b"admin:" + Path(place[1]).read_bytes()).decode()
    folder = Path(settings["paths"]["provisioning"])
    sources = [
        entry | {"uid": f"source-{i}"} for i, entry in enumerate(provisioned(folder / "datasources", "datasources"))
    ]
    homes = [Path(entry["options"]["path"]) for entry in provisioned(folder / "dashboards", "providers")]
    boards = [json.loads(path.read_text()) for home in homes for path in sorted(home.glob("*.json"))]

    def health(source: dict[str, Any]) -> dict[str, str]:
        asked = urllib.parse.urlencode({"query": "1+1"})
        with urllib.request.urlopen(f"{source['url']}/api/v1/query?{asked}", timeout=5) as answer:
            return {"status": "OK" if json.load(answer)["status"] == "success" else "ERROR"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            wanted = dict(urllib.parse.parse_qsl(url.query)).get("query", "").lower()
            if self.headers["Authorization"] != f"Basic {login}":
                self.answer(401, {"message": "Invalid username or password"})
            elif url.path == "/api/search":
                found = [{"uid": b["uid"], "title": b["title"]} for b in boards if wanted in b["title"].lower()]
                self.answer(200, found)
            elif url.path == "/api/datasources":
                self.answer(200, sources)
            elif named := re.fullmatch(r"/api/datasources/uid/(.*)/health", url.path):
                self.answer(200, health(next(source for source in sources if source["uid"] == named[1])))
            else:
                self.answer(404, {"message": "Not found"})

        def answer(self, status: int, document: Any) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

    server = settings["server"]
    ThreadingHTTPServer((server["http_addr"], int(server["http_port"])), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
