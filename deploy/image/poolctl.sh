#!/bin/sh
# `docker compose exec worker poolctl check`: an exec passes the image's entrypoint over, and with it the stack's defaults.
exec entrypoint python -m poolctl "$@"
