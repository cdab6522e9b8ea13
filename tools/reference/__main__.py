"""Regenerate docs/configuration.md: python -m tools.reference"""

from tools.reference import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
