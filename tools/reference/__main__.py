"""Write docs/configuration.md anew."""

from tools.reference import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
