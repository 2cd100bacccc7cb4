"""The report page: what a run came to, or several runs side by side, as one HTML file without requests.

Offers: write.{write_if_new,write_report,write_comparison}, gather.run_page.
May import: rundir, and machine for the place of the templates.

    files of a run ─▶ gather (with answers, history) ─▶ a plain dict ─▶ html ─▶ report.html
    several runs   ─▶ compare (with uncertainty)             ─▶ a plain dict ─▶ html ─▶ FILE
"""
