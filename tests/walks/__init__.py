"""The walks of six users, from an empty folder to a result, as processes of their own.

``pytest -m documents tests/walks --transcripts DIR`` runs them, and keeps what each of them saw.
"""
