"""A new run from a form: the job's schema as fields, what they say as a job, its plan, its records, and its start.

Offers: new_run_page.text (the page), form_answers.{check,work,records,start} (what the page asks the server for).
May import: job, lifecycle; rundir and machine; show.page for the frame of a page and texts in Chinese.
"""
