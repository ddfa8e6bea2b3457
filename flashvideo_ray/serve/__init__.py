"""The interactive service: people submit prompts, look at previews, decide, and have the good ones refined.

A Ray Serve application over one run directory. Nothing is kept anywhere else: submitted prompts and decisions are
Parquet parts in it before they are acknowledged, and whatever is restarted reads them again.

    app        settings and run directory -> Serve application
    api        HTTP routes;  security: who may do what;  media: ranges;  events: server-sent events
    service    what the routes do, in each replica of the API
    scheduler  the one that queues work, calls the stages and writes the ledger
    worker     one stage of the pipeline as a deployment
    state      the run as tables in memory, kept up to date;  requests: what was asked for
"""
