"""The runs in a browser: the server of `zlaunch ui`, on Starlette and uvicorn (the extra `ui`).

Offers: server.Site. May import: show.page for the pages, rundir, and machine for the processes that it starts.

    browser ─▶ security ─▶ app ─▶ pages, streams   read run directories (board)
                                └▶ actions, chats   start zlaunch commands
"""
