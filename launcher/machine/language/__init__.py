"""What is said in the language of the person at the terminal: Chinese where the locale is, or ZLAUNCH_LANG=zh.

Texts are written in English where they arise, and translated where they are shown (docs/design/language.md). JSON,
files and logs stay English.
Offers: spoken.{is_chinese,say,tell}, bilingual.{in_chinese,both}, error_codes.{CODES,of_cause}, help_page.HelpPage.
May import: errors.
"""
