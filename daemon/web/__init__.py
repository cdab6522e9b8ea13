"""The operator's page: what the node does, what it found, and what needs a person (docs/page.md).

It reads the ledger through daemon/ledger/view.py and acts through the ledger's own transitions.
"""
