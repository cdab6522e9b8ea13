"""The operator's page: the node's state, its findings, and what needs a person (docs/page.md).

It reads the ledger through daemon/ledger/view.py and acts through the ledger's own transitions.
"""
