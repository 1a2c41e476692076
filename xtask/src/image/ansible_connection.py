# Ansible connection into a directory tree: modules run in the builder's own container, files are copied directly.
# Needs only ansible-core. Set by the builder: REFLASH_TREE, REFLASH_CONTAINER (JSON list of words).

import json
import os
import shutil
import subprocess

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: reflash_tree
short_description: Work on the tree of a system image
description: Runs modules in the container that the image builder uses for commands.
author: reflash
options: {}
"""


class Connection(ConnectionBase):
    transport = "reflash_tree"
    has_pipelining = True

    def _connect(self):
        self._tree = os.path.realpath(os.environ["REFLASH_TREE"])
        self._container = json.loads(os.environ["REFLASH_CONTAINER"])
        self._connected = True
        return self

    def exec_command(self, cmd, in_data=None, sudoable=True):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        words = self._container + ["/bin/sh", "-c", cmd]
        done = subprocess.run(words, input=in_data or b"", stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        return done.returncode, done.stdout, done.stderr

    def _inside(self, path):
        path = os.path.join(self._tree, path.lstrip("/"))
        if not os.path.realpath(path).startswith(self._tree + os.sep):
            raise AnsibleError(f"{path} leads out of the image")
        return path

    def put_file(self, in_path, out_path):
        super().put_file(in_path, out_path)
        shutil.copyfile(in_path, self._inside(out_path))

    def fetch_file(self, in_path, out_path):
        super().fetch_file(in_path, out_path)
        shutil.copyfile(self._inside(in_path), out_path)

    def close(self):
        self._connected = False
