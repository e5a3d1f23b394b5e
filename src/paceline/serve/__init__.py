"""The server: OpenAI's HTTP interface in front of engines that run in processes of their own.

A request meets, in this order:

    program    the process that listens: sockets, signals, draining; settings: how it is to be run
    guard      keys and limits, in front of every route
    app        the routes; server: what they share
    answering  a request for an answer, from its bytes to its end
    reading    from bytes to a typed record; schema: those records
    jobs       from a record to what an engine gets: all bounds; formats, tools: grammars of answers
    fleet      the models; backend: one engine process, supervised
    wire       frames between the processes; worker: the engine process; stub: a tiny model for trials
    channel    what a response has yet to say; stream: to a client that may go away
    answers    responses and chunks; responses_api: those of /v1/responses; figures: how answers were made

failures are what can be said on the way; metrics, telemetry, logs and openapi stand beside it.
Needs the extra `paceline[serve]`.
"""
