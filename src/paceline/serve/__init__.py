"""The server: OpenAI's HTTP interface in front of engines that run in processes of their own.

    program   the process that listens: sockets, signals, draining
    app       routes; guard: keys and limits in front of them
    schema    requests as typed records; reading: from bytes to such a record; jobs: to what an engine gets
    answers   responses and chunks; tools: calls of functions; responses_api: /v1/responses
    fleet     the configured models; backend: one engine process, supervised; channel: one response's events
    wire      frames between the two processes; worker: the engine process; stub: a tiny model for trials

Needs the extra `paceline[serve]`.
"""
