"""Every text of the page, in English and German, in one table.

A text may name values in braces. Codes, UIDs and the DICOM standard's own names stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_LANGUAGES = ("en", "de")
# Longer than any browser's header.
_MOST_HEADER = 200


@dataclass(frozen=True)
class Texts:
    """The texts of one language."""

    language: str

    @classmethod
    def for_browser(cls, setting: str, accepted: str) -> Texts:
        """The setting's language; `auto`: the first that the browser accepts, else English."""
        if setting in _LANGUAGES:
            return cls(setting)
        for part in accepted[:_MOST_HEADER].split(","):
            match = re.match(r"\s*([a-zA-Z]{2})\b", part)
            if match and match[1].lower() in _LANGUAGES:
                return cls(match[1].lower())
        return cls("en")

    def say(self, key: str, **values: Any) -> str:
        """One text.

        Raises:
            KeyError: there is no such text, or a value is missing.
        """
        text = TABLE[key][_LANGUAGES.index(self.language)]
        return text.format(**values) if values else text

    def say_or(self, key: str, otherwise: str, **values: Any) -> str:
        """One text, or `otherwise` if the table lacks it."""
        return self.say(key, **values) if key in TABLE else otherwise


# key -> (English, German)
TABLE: dict[str, tuple[str, str]] = {
    # Every page.
    "skip": ("Skip to the content", "Zum Inhalt"),
    "pages": ("Pages", "Seiten"),
    "now": ("Now", "Jetzt"),
    "images": ("Images", "Bilder"),
    "model": ("Model", "Modell"),
    "try_it": ("Try it", "Ausprobieren"),
    "log_in": ("Log in", "Anmelden"),
    "log_out": ("Log out", "Abmelden"),
    "name": ("Name", "Name"),
    "password": ("Password", "Passwort"),
    "research_only": (
        "Research use only, not for diagnosis",
        "Nur für Forschung, nicht zur Diagnose",
    ),
    "problem": ("That did not work", "Das hat nicht geklappt"),
    "to_first_page": ("To the first page", "Zur ersten Seite"),
    "span_s": ("{number} s", "{number} s"),
    "span_min": ("{number} min", "{number} min"),
    "span_h": ("{number} h", "{number} h"),
    "span_days": ("{number} days", "{number} d"),
    "never": ("no heartbeat yet", "noch kein Lebenszeichen"),
    # Logging in.
    "login_failed": ("Name or password is wrong.", "Name oder Passwort ist falsch."),
    "login_wait": (
        "Too many logins. Try again in {seconds} s.",
        "Zu viele Anmeldungen. Bitte in {seconds} s erneut versuchen.",
    ),
    "log_in_by_oidc": ("Log in with the hospital's account", "Anmelden mit dem Konto des Hauses"),
    "logged_in": ("Logged in", "Angemeldet"),
    "go_on": ("Go on", "Weiter"),
    "oidc_provider": (
        "The login service does not answer as it should. The log of the web role says why.",
        "Der Anmeldedienst antwortet nicht wie erwartet. Das Protokoll der Rolle web nennt den "
        "Grund.",
    ),
    "oidc_busy": (
        "Too many logins right now. Try again.",
        "Gerade zu viele Anmeldungen. Bitte erneut versuchen.",
    ),
    "oidc_browser": (
        "This browser has no pending login, or it took too long. Log in again; the page needs "
        "cookies.",
        "Dieser Browser hat keine Anmeldung begonnen, oder vor zu langer Zeit. Bitte neu anmelden; "
        "die Seite braucht Cookies.",
    ),
    "oidc_state": (
        "This login took too long, was used already, or was begun in another browser. Log in "
        "again.",
        "Diese Anmeldung dauerte zu lange, wurde schon benutzt oder begann in einem anderen "
        "Browser. Bitte neu anmelden.",
    ),
    "oidc_issuer": (
        "The answer came from another login service than the settings name.",
        "Die Antwort kam von einem anderen Anmeldedienst als dem der Einstellungen.",
    ),
    "oidc_denied": (
        "The login service did not let you in.",
        "Der Anmeldedienst hat die Anmeldung abgelehnt.",
    ),
    "oidc_token": (
        "The login service's answer does not fit this login. The log of the web role says why.",
        "Die Antwort des Anmeldedienstes passt nicht zu dieser Anmeldung. Das Protokoll der Rolle "
        "web nennt den Grund.",
    ),
    "oidc_role": (
        "Your account has no role on this page. Ask for one where accounts are managed.",
        "Dieses Konto hat auf dieser Seite keine Rolle. Die Kontenverwaltung kann eine vergeben.",
    ),
    "no_users": (
        "The settings name no user. Counts and states are open on this machine; pictures "
        "and buttons need a user (docs/page.md).",
        "Die Einstellungen nennen keinen Benutzer. Zahlen und Zustände sind auf diesem Rechner "
        "offen; Bilder und Knöpfe brauchen einen Benutzer (docs/page.md).",
    ),
    # Faults.
    "message_forbidden": (
        "Your login may look, but not do this. A user with `role: act` may.",
        "Diese Anmeldung darf nur ansehen. Ein Benutzer mit `role: act` darf das.",
    ),
    "message_forbidden_origin": (
        "The browser says that this form came from another site. Open the page by its own address "
        "and repeat it. Behind a proxy: it must pass on Host (docs/page.md).",
        "Der Browser sagt, dieses Formular kam von einer anderen Website. Die Seite unter ihrer "
        "eigenen Adresse öffnen und wiederholen. Hinter einem Proxy: er muss Host weitergeben "
        "(docs/page.md).",
    ),
    "message_forbidden_token": (
        "The form is too old, or not from this page. Open the page again and repeat it.",
        "Das Formular ist zu alt oder nicht von dieser Seite. Seite neu öffnen und wiederholen.",
    ),
    "message_too_large": ("The file is too large.", "Die Datei ist zu groß."),
    "message_too_slow": (
        "The file did not arrive completely in time.",
        "Die Datei kam nicht rechtzeitig vollständig an.",
    ),
    "message_ledger_away": (
        "The ledger does not answer. The log says why; the page answers again when it does.",
        "Das Ledger antwortet nicht; das Protokoll nennt den Grund. Danach geht die Seite wieder.",
    ),
    "message_not_found": ("There is nothing here.", "Hier ist nichts."),
    "message_broken": (
        "The page broke. The log of the web role says where.",
        "Auf der Seite trat ein Fehler auf. Das Protokoll der Rolle web nennt die Stelle.",
    ),
    "message_wrong_form": (
        "The form names something that the settings do not.",
        "Das Formular nennt etwas, das die Einstellungen nicht kennen.",
    ),
    # Now.
    "all_is_well": ("All is well", "Alles in Ordnung"),
    "needs_a_person": ("Needs a person: {number}", "Handlungsbedarf: {number}"),
    "what_needs_a_person": ("What needs a person", "Was zu tun ist"),
    "as_of": ("As of", "Stand"),
    "show": ("Show", "Zeigen"),
    "figures": ("Figures", "Zahlen"),
    "waiting": ("Waiting", "Wartend"),
    "nothing_waits": ("nothing waits", "nichts wartet"),
    "oldest": ("the oldest for {age}", "das älteste seit {age}"),
    "last_hour": ("Images in the last hour", "Bilder in der letzten Stunde"),
    "in_a_day": ("{number} in 24 h", "{number} in 24 h"),
    "suspected": ("Suspected", "Verdacht"),
    "of_analysed": (
        "{percent} of {number} analysed in 24 h",
        "{percent} von {number} analysierten in 24 h",
    ),
    "none_analysed": ("none analysed in 24 h", "in 24 h keines analysiert"),
    "time_to_archive": ("Receipt to archive", "Empfang bis Archiv"),
    "slow_share": ("median; 95 % within {age}", "Median; 95 % innerhalb von {age}"),
    "nothing_sent_yet": ("nothing sent yet", "noch nichts gesendet"),
    "images_an_hour": ("Images an hour", "Bilder je Stunde"),
    "received": ("Received", "Empfangen"),
    "hours_alt": (
        "{number} images in 24 hours, {found} of them suspected",
        "{number} Bilder in 24 Stunden, davon {found} mit Verdacht",
    ),
    "destinations": ("Destinations", "Ziele"),
    "destination": ("Destination", "Ziel"),
    "state": ("State", "Zustand"),
    "last_answer": ("Last answer", "Letzte Antwort"),
    "next_try": ("Next try", "Nächster Versuch"),
    "owed": ("Owed", "Ausstehend"),
    "up": ("Up", "Erreichbar"),
    "down": ("Down", "Gestört"),
    "since": ("since {time}", "seit {time}"),
    "in_time": ("in {age}", "in {age}"),
    "trying_now": ("now", "jetzt"),
    "not_in_settings": ("Not in the settings", "Nicht in den Einstellungen"),
    "no_destination": (
        "The settings name no destination: nothing is sent.",
        "Die Einstellungen nennen kein Ziel: Es wird nichts gesendet.",
    ),
    "roles": ("Roles", "Rollen"),
    "role_receive": ("Receive", "Empfangen"),
    "role_analyse": ("Analyse", "Analysieren"),
    "role_deliver": ("Deliver", "Ausliefern"),
    "role_web": ("This page", "Diese Seite"),
    "role_shadow": ("Shadow model", "Schattenmodell"),
    "runs": ("Runs", "Läuft"),
    "silent": ("Silent", "Ohne Lebenszeichen"),
    "not_running": ("Not running", "Läuft nicht"),
    "sign_ago": ("heartbeat {age} ago", "Lebenszeichen vor {age}"),
    "for_time": ("for {age}", "seit {age}"),
    "this_node": ("This node", "Dieser Knoten"),
    "disk": ("Spool's disk", "Platte des Spools"),
    "free": ("{size} free", "{size} frei"),
    "unreadable": ("unreadable", "nicht lesbar"),
    "certificate": ("Certificate of {where}", "Zertifikat von {where}"),
    "certificates": ("Certificates", "Zertifikate"),
    "no_certificates": ("none in the settings", "keine in den Einstellungen"),
    "days_left": ("{days} days left", "noch {days} Tage"),
    "unusable": ("unusable", "unbrauchbar"),
    "not_analysed_today": ("Not analysed, last 24 h", "Nicht analysiert, letzte 24 h"),
    "none_today": ("None.", "Keine."),
    # Alarms: the kinds of daemon/alerts/kinds.py.
    "alarms": ("Alarms", "Alarme"),
    "alarm": ("Alarm", "Alarm"),
    "found": ("Found", "Was vorliegt"),
    "began": ("Since", "Seit"),
    "runbook": ("Runbook", "Anleitung"),
    "runbook_language": (
        "The entries are in English.",
        "Die Anleitungen liegen nur auf Englisch vor.",
    ),
    "alarm_outage": (
        "A destination is down or stores nothing",
        "Ein Ziel ist nicht erreichbar oder speichert nichts",
    ),
    "alarm_owed": (
        "A result does not reach its destination",
        "Ein Ergebnis erreicht sein Ziel nicht",
    ),
    "alarm_commitment": (
        "A destination does not commit to what it stored",
        "Ein Ziel bestätigt nicht, was es gespeichert hat",
    ),
    "alarm_backlog": ("Images wait too long", "Bilder warten zu lange"),
    "alarm_failed": ("Images failed", "Bilder sind fehlgeschlagen"),
    "alarm_refused": ("Results were refused", "Ergebnisse wurden abgewiesen"),
    "alarm_silence": ("A sender is silent", "Ein Sender ist verstummt"),
    "alarm_disk": (
        "The disk is almost full, or the spool is missing",
        "Die Platte ist fast voll, oder der Spool ist fort",
    ),
    "alarm_inbox": (
        "Files in the inbox are not taken",
        "Dateien im Eingangsordner werden nicht angenommen",
    ),
    "alarm_clock": (
        "The clock was set by days, or the node was off for more than a week",
        "Die Uhr wurde um Tage verstellt, oder der Knoten war mehr als eine Woche aus",
    ),
    "alarm_certificate": (
        "A certificate ends soon, or a TLS file cannot be used",
        "Ein Zertifikat läuft bald ab, oder eine TLS-Datei ist unbrauchbar",
    ),
    "alarm_role": ("A role is silent", "Eine Rolle ist verstummt"),
    "alarm_drift": (
        "The answers differ from their baseline",
        "Die Antworten weichen vom Vergleichszeitraum ab",
    ),
    # What needs a person.
    "need_role_receive": (
        "The receive role does not run: modalities cannot send.",
        "Die Rolle receive läuft nicht: Modalitäten können nicht senden.",
    ),
    "need_role_receive_more": ("Last heartbeat: {age}.", "Letztes Lebenszeichen: {age}."),
    "need_role_analyse": (
        "The analyse role does not run: images wait without an answer.",
        "Die Rolle analyse läuft nicht: Bilder warten ohne Antwort.",
    ),
    "need_role_analyse_more": ("Last heartbeat: {age}.", "Letztes Lebenszeichen: {age}."),
    "need_role_deliver": (
        "The deliver role does not run: results reach no archive.",
        "Die Rolle deliver läuft nicht: Ergebnisse erreichen kein Archiv.",
    ),
    "need_role_deliver_more": ("Last heartbeat: {age}.", "Letztes Lebenszeichen: {age}."),
    "need_role_shadow": (
        "The shadow model does not run: nothing is compared. No image depends on it.",
        "Das Schattenmodell läuft nicht: Nichts wird verglichen. Kein Bild hängt davon ab.",
    ),
    "need_role_shadow_more": ("Last heartbeat: {age}.", "Letztes Lebenszeichen: {age}."),
    "need_same_reason": (
        "The newest {number} images were all excluded for the same reason: {reason}.",
        "Die neuesten {number} Bilder wurden alle aus demselben Grund nicht analysiert: {reason}.",
    ),
    "need_same_reason_more": (
        "Check `admission` in the settings.",
        "Stimmt `admission` in den Einstellungen?",
    ),
    "need_spool": (
        "The spool cannot be seen. Is its disk mounted, and may this user read it?",
        "Der Spool ist nicht zu sehen. Ist seine Platte eingehängt, und darf dieser Benutzer ihn "
        "lesen?",
    ),
    "need_no_room": (
        "The spool's disk is full: {size} free. C-STORE is refused.",
        "Die Platte des Spools ist voll: {size} frei. C-STORE wird abgewiesen.",
    ),
    "need_little_room": (
        "Little room on the spool's disk: {size} free.",
        "Wenig Platz auf der Platte des Spools: {size} frei.",
    ),
    "need_quarantine": (
        "{number} files in the spool's quarantine wait for a person.",
        "{number} Dateien liegen in der Quarantäne des Spools und müssen geprüft werden.",
    ),
    "need_quarantine_more": (
        "They could not be adopted (docs/backup.md).",
        "Sie ließen sich nicht übernehmen (docs/backup.md).",
    ),
    "need_unknown": (
        "{count} deliveries are owed to {name}, which is not in the settings.",
        "{count} Lieferungen stehen für {name} aus; die Einstellungen kennen dieses Ziel nicht.",
    ),
    "need_down": (
        "{name} has stored nothing for {age}; {count} deliveries wait.",
        "{name} speichert seit {age} nichts; {count} Lieferungen warten.",
    ),
    "need_down_more": ("{answer}", "{answer}"),
    "need_failed": ("Images failed: {count}.", "Fehlgeschlagene Bilder: {count}."),
    "need_failed_more": ("The newest: {reason}.", "Das neueste: {reason}."),
    "need_refused": (
        "{name} refused {number} deliveries.",
        "{name} hat {number} Lieferungen abgewiesen.",
    ),
    "need_refused_more": ("The newest: {why}", "Die neueste: {why}"),
    "need_refused_unknown": (
        "{number} refused deliveries are addressed to {name}, which is not in the settings.",
        "{number} abgewiesene Lieferungen an {name}, das die Einstellungen nicht kennen.",
    ),
    "need_certificate": (
        "The file of {where} cannot be used.",
        "Die Datei von {where} ist unbrauchbar.",
    ),
    "need_certificate_more": ("{trouble}", "{trouble}"),
    "need_certificate_days": (
        "The certificate {where} ends in {days} days.",
        "Das Zertifikat {where} endet in {days} Tagen.",
    ),
    # Acts, and what they did.
    "act_retry-images": ("Retry all", "Alle wiederholen"),
    "act_retry-image": ("Retry this image", "Dieses Bild wiederholen"),
    "act_retry-refused": ("Send again", "Erneut senden"),
    "act_try-now": ("Try now", "Jetzt versuchen"),
    "act_send-again": ("Send again", "Erneut senden"),
    "act_readdress": ("Send there", "Dorthin senden"),
    "told_images_again": (
        "{number} images wait for another try.",
        "{number} Bilder warten auf einen neuen Versuch.",
    ),
    "told_owed_again": (
        "{number} deliveries are owed to {name} again.",
        "{number} Lieferungen stehen für {name} wieder aus.",
    ),
    "told_due_now": (
        "{number} deliveries to {name} are due now.",
        "{number} Lieferungen an {name} sind jetzt fällig.",
    ),
    "told_sent_again": (
        "{number} objects are sent to {name} again; {gone} cannot be: their files are gone.",
        "{number} Objekte gehen erneut an {name}; {gone} nicht mehr, ihre Dateien sind gelöscht.",
    ),
    "told_readdressed": (
        "{number} deliveries for {old} go to {name} now. {left} stay, because {name} does not take "
        "their kind; {already} stay, because {name} has or awaits the same results.",
        "{number} Lieferungen für {old} gehen nun an {name}. {left} bleiben, weil {name} ihre Art "
        "nicht annimmt; {already} bleiben, weil {name} dieselben Ergebnisse hat oder erwartet.",
    ),
    # Images.
    "accession": ("Accession number", "Auftragsnummer"),
    "any_uid": ("UID of a study, image or result", "UID von Studie, Bild oder Ergebnis"),
    "sender": ("Sender (AE title)", "Sender (AE-Titel)"),
    "reason": ("Reason", "Grund"),
    "score": ("Score", "Wert"),
    "any": ("any", "beliebig"),
    "from": ("From", "Von"),
    "to": ("To", "Bis"),
    "search": ("Search", "Suchen"),
    "clear": ("Clear", "Zurücksetzen"),
    "nothing_found": ("No image was found.", "Kein Bild gefunden."),
    "more_results": ("More results", "Weitere Ergebnisse"),
    "newest": ("Newest", "Neueste"),
    "older": ("Older", "Ältere"),
    "search_on": ("Search on", "Weitersuchen"),
    "searched_back_to": ("Searched back to {time}", "Durchsucht zurück bis {time}"),
    "state_received": ("Waiting", "Wartet"),
    "state_positive": ("Suspected", "Verdacht"),
    "state_analysed": ("Not detected", "Nicht erkannt"),
    "state_any_analysed": ("Analysed", "Analysiert"),
    "state_not_analysed": ("Not analysed", "Nicht analysiert"),
    "state_failed": ("Failed", "Fehlgeschlagen"),
    "state_duplicate": ("Duplicate", "Duplikat"),
    # One image.
    "image": ("Image", "Bild"),
    "show_overlay": ("Overlay", "Overlay"),
    "overlay_alt": ("Radiograph with the overlay", "Röntgenbild mit Overlay"),
    "radiograph_alt": ("Radiograph without marks", "Röntgenbild ohne Markierungen"),
    "not_for_diagnosis": ("Not for diagnosis.", "Nicht zur Diagnose."),
    "bytes_removed": (
        "Retention has removed the files of this image; the record stays.",
        "Die Dateien dieses Bildes sind nach der Aufbewahrungsfrist entfernt; der Eintrag bleibt.",
    ),
    "no_users_for_pictures": (
        "The settings name no user. Pictures and objects need one: web.users (docs/page.md).",
        "Die Einstellungen nennen keinen Benutzer. Bilder und Objekte brauchen einen: web.users "
        "(docs/page.md).",
    ),
    "threshold_at": ("threshold {threshold}", "Schwelle {threshold}"),
    "score_alt": (
        "score {score}, threshold {threshold}",
        "Wert {score}, Schwelle {threshold}",
    ),
    "facts": ("Facts", "Angaben"),
    "size": ("Size", "Größe"),
    "device": ("Device", "Gerät"),
    "patient_name": ("Patient's name", "Name des Patienten"),
    "patient_id": ("Patient ID", "Patienten-ID"),
    "open_in_viewer": ("Open in the viewer", "Im Viewer öffnen"),
    "timeline": ("Timeline", "Verlauf"),
    "open": ("open", "offen"),
    "objects": ("Objects", "Objekte"),
    "kind": ("Kind", "Art"),
    "download": ("Download", "Herunterladen"),
    "owed_to_nobody": ("owed to no destination", "für kein Ziel bestimmt"),
    "no_objects": ("None was made.", "Es wurde keines erzeugt."),
    "send_again_hint": (
        "Sends what the chosen destination has stored, after it lost objects.",
        "Sendet erneut, was das gewählte Ziel gespeichert hatte, falls es Objekte verlor.",
    ),
    "same_uid": ("The same UID at other times", "Dieselbe UID zu anderen Zeiten"),
    "delivery_owed": ("owed", "steht aus"),
    "delivery_stored": ("stored", "gespeichert"),
    "delivery_committed": ("committed", "zugesichert"),
    "delivery_refused": ("refused", "abgewiesen"),
    "event_received": ("Received from {sender} at {address}", "Empfangen von {sender}, {address}"),
    "event_received_without_address": (
        "Received from {sender} ({origin})",
        "Empfangen von {sender} ({origin})",
    ),
    "event_waits": ("Waits for the analysis", "Wartet auf die Analyse"),
    "event_in_work": ("In work, attempt {attempts}", "In Arbeit, Versuch {attempts}"),
    "event_analysed": (
        "Analysed after {seconds} by {model} on {device}",
        "Analysiert nach {seconds} mit {model} auf {device}",
    ),
    "event_not_analysed": (
        "Not analysed after {seconds}: {reason}",
        "Nicht analysiert nach {seconds}: {reason}",
    ),
    "event_failed": (
        "Failed after {seconds}: {reason} {detail}",
        "Fehlgeschlagen nach {seconds}: {reason} {detail}",
    ),
    "event_duplicate": (
        "Recognised as a duplicate of image {original}",
        "Als Duplikat von Bild {original} erkannt",
    ),
    "event_owed": (
        "{kind} is owed to {name}; {attempts} tries so far. {why}",
        "{kind} steht für {name} aus; bisher {attempts} Versuche. {why}",
    ),
    "event_stored": ("{kind} stored at {name}", "{kind} gespeichert bei {name}"),
    "event_committed": ("{name} committed to {kind}", "{name} hat {kind} zugesichert"),
    "event_refused": ("{kind} refused by {name}: {why}", "{kind} abgewiesen von {name}: {why}"),
    "event_removed": ("Files removed by retention", "Dateien nach Ablauf der Frist entfernt"),
    # Model.
    "model_unreadable": (
        "The model package of the settings cannot be read.",
        "Das Modellpaket der Einstellungen ist nicht lesbar.",
    ),
    "threshold": ("Threshold", "Schwelle"),
    "network_classifier": ("Classifier", "Klassifikator"),
    "network_segmenter": ("Segmenter", "Segmentierer"),
    "network_plausibility": ("Gate", "Vorprüfung"),
    "calibration": ("Calibration", "Kalibrierung"),
    "prevalence": ("for a prevalence of {percent}", "für eine Prävalenz von {percent}"),
    "trained": ("Trained", "Trainiert"),
    "licence": ("Licence", "Lizenz"),
    "measured": ("Measured", "Gemessen"),
    "at_this_site": ("At this site", "In diesem Haus"),
    "week_of": ("Week of", "Woche vom"),
    "all_senders": ("all senders", "alle Sender"),
    "without_answer": ("Without an answer", "Ohne Antwort"),
    "baseline": ("Baseline", "Vergleichszeitraum"),
    "no_weeks": ("No image has ended in these weeks.", "In diesen Wochen endete kein Bild."),
    "no_baseline": (
        "No baseline is set (pleura drift baseline): there are no alarms.",
        "Kein Vergleichszeitraum ist gesetzt (pleura drift baseline): Es gibt keinen Alarm.",
    ),
    "against_reports": ("Against {number} reports", "Gegen {number} Befunde"),
    "shadow": ("The shadow model", "Das Schattenmodell"),
    "shadow_hint": (
        "It answers the same images for comparison only; its answers are not sent. These are the "
        "newest images.",
        "Es beantwortet dieselben Bilder nur zum Vergleich; nichts davon wird gesendet. Gezeigt "
        "sind die neuesten Bilder.",
    ),
    "both_answered": ("Images that both answered", "Von beiden beantwortete Bilder"),
    "same_answer": ("The same answer", "Gleiche Antwort"),
    "positive_alone": ("Suspected by only one", "Verdacht nur bei einem"),
    "reports_on_these": ("Reports on these images", "Befunde zu diesen Bildern"),
    "figure": ("Figure", "Kennzahl"),
    "value": ("Value", "Wert"),
    "interval": ("95 % interval", "95-%-Intervall"),
    "measured_where": (
        "On the images that the card names, not on this site's.",
        "An den Bildern, die die Modellkarte nennt, nicht an denen dieses Hauses.",
    ),
    "no_figures": ("The package states no figures.", "Das Paket nennt keine Kennzahlen."),
    "figure_auc": ("AUC", "AUC"),
    "figure_sensitivity": ("Sensitivity", "Sensitivität"),
    "figure_specificity": ("Specificity", "Spezifität"),
    "figure_ppv": ("Positive predictive value", "Positiver Vorhersagewert"),
    "figure_npv": ("Negative predictive value", "Negativer Vorhersagewert"),
    "figure_average_precision": ("Average precision", "Average Precision"),
    "figure_dice_positives": ("Dice of positives", "Dice der Positiven"),
    "said": ("stated probability", "genannte Wahrscheinlichkeit"),
    "was": ("share of positives", "Anteil der Positiven"),
    "reliability_alt": (
        "Reliability diagram: the share of positives for each stated probability",
        "Zuverlässigkeitsdiagramm: Anteil der Positiven je genannter Wahrscheinlichkeit",
    ),
    "reliability_hint": (
        "Each dot is a group of images. On the diagonal, the stated probability is right.",
        "Jeder Punkt ist eine Gruppe von Bildern. Auf der Diagonale stimmt die Wahrscheinlichkeit.",
    ),
    "whole_card": ("The whole card", "Die ganze Modellkarte"),
    # Try it.
    "try_file": (
        "A DICOM file, PNG, JPEG or TIFF of a frontal chest X-ray",
        "Eine frontale Thoraxaufnahme als DICOM-, PNG-, JPEG- oder TIFF-Datei",
    ),
    "analyse": ("Analyse", "Analysieren"),
    "try_hint": (
        "At most {size}. Nothing is kept: neither the file nor the answer, and nothing is sent.",
        "Höchstens {size}. Weder Datei noch Antwort werden aufbewahrt, und nichts wird gesendet.",
    ),
    "try_runs": ("Working; this takes some seconds …", "In Arbeit; das dauert einige Sekunden …"),
    "try_no_file": ("No file was sent.", "Es kam keine Datei."),
    "try_busy": (
        "Another file is being tried. Try again in half a minute.",
        "Gerade wird eine andere Datei analysiert. Bitte in einer halben Minute erneut versuchen.",
    ),
    "try_broken": (
        "There is no answer: the file took more time or memory than it may, or broke the analysis.",
        "Keine Antwort: Die Datei brauchte mehr Zeit oder Speicher, als sie darf, oder die Analyse "
        "brach ab.",
    ),
    "try_no_picture": ("No overlay was made.", "Kein Overlay erzeugt."),
    "answer": ("Answer", "Antwort"),
    "area": ("Area", "Fläche"),
    "area_estimated": (
        "estimated at the detector's plane",
        "geschätzt in der Ebene des Detektors",
    ),
    "side": ("Side", "Seite"),
    "side_R": ("right", "rechts"),
    "side_L": ("left", "links"),
    "side_B": ("both", "beide"),
    "note": ("Note", "Hinweis"),
    # The reasons of inference/admission.py.
    "reason_own_output": ("one of this node's own results", "eigenes Ergebnis dieses Knotens"),
    "reason_foreign_result": ("a result of another system", "Ergebnis eines anderen Systems"),
    "reason_sop_class": ("not a radiograph's SOP class", "keine SOP-Klasse eines Röntgenbildes"),
    "reason_for_processing": ("raw data for processing", "Rohdaten zur Verarbeitung"),
    "reason_multi_frame": ("more than one frame", "mehr als ein Einzelbild"),
    "reason_modality": ("another modality", "andere Modalität"),
    "reason_species": ("not a human patient", "kein menschlicher Patient"),
    "reason_body_part": ("another body part", "andere Körperregion"),
    "reason_view": ("not a frontal view", "keine frontale Aufnahme"),
    "reason_not_a_frontal_chest": (
        "not a frontal chest by its picture",
        "dem Bild nach keine frontale Thoraxaufnahme",
    ),
    "reason_no_identity": ("no usable UID", "keine brauchbare UID"),
    "reason_under_age": ("younger than the minimum age", "jünger als das Mindestalter"),
    "reason_age_unknown": ("the patient's age cannot be told", "Alter des Patienten unbekannt"),
    "reason_blank": ("the image is blank", "leeres Bild"),
    "reason_too_small": ("the image has too few pixels", "zu wenige Bildpunkte"),
    "reason_undecodable": ("the pixels cannot be decoded", "Pixel nicht dekodierbar"),
    "reason_not_dicom": ("not a DICOM object", "kein DICOM-Objekt"),
    "reason_bytes_missing": (
        "the spool no longer holds the whole image",
        "der Spool hat das Bild nicht mehr ganz",
    ),
    "reason_uid_mismatch": (
        "another instance than the one announced",
        "andere Instanz als angekündigt",
    ),
    "reason_analysis_error": ("the analysis broke repeatedly", "Analyse wiederholt abgebrochen"),
    "reason_result_invalid": (
        "a result failed its own check",
        "ein Ergebnis bestand die eigene Prüfung nicht",
    ),
}
