"""Language codes of multilingual tokenizers: mBART, mBART-50, NLLB, M2M-100 and PLBART.

An encoder input carries the code of the source language, a decoder target the code of the target language, so these tokenizers encode
the same text in two ways. tokenizer_config.json names the languages as in transformers: src_lang and tgt_lang.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lm_research.errors import TokenizerError, suggest

# Codes in the order of their ids: mBART (Liu et al. 2020), mBART-50 (Tang et al. 2020), NLLB (NLLB Team 2022), M2M-100 (Fan et al. 2020)
# and Facebook's models for WMT 2021 (Tran et al. 2021).
MBART = """
ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX
ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
""".split()
MBART_50 = (
    MBART
    + """
af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN
te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
""".split()
)
NLLB = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab ary_Arab
arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng
bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn
cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn
pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn
hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn
jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn
khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn
lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn
mkd_Cyrl plt_Latn mlt_Latn mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva
nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab
quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn
tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn tso_Latn tuk_Latn
tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn
xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn
""".split()
M2M_100 = """
af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy id ig
ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl
so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
""".split()
WMT_21 = "en ha is ja cs ru zh de".split()
PLBART = "java python en_XX".split()  # Ahmad et al. 2021
PLBART_MULTI = PLBART + "javascript php ruby go".split()


@dataclasses.dataclass(frozen=True)
class Languages:
    """The languages of a tokenizer.

    Attributes:
      ids: language code -> id of its token.
      source: code of the source language, "" if texts are not marked (PLBART).
      target: code of the target language, "" if the files do not name one.
      code_last: whether the code follows a text and its end token; otherwise it precedes the text.
      starts_decoder: whether the code takes the place of the decoder's start token (mBART); otherwise it is the first target token.
    """

    ids: Mapping[str, int]
    source: str
    target: str
    code_last: bool
    starts_decoder: bool

    @property
    def target_or_source(self) -> str:
        """The target language, or the source language if no target is named (transformers does the same)."""
        return self.target or self.source

    def id_of(self, code: str) -> int:
        """Id of a language code; raises a TokenizerError if the tokenizer lacks it."""
        if code not in self.ids:
            alike = [one for one in self.ids if one[:2].lower() == code[:2].lower()]
            raise TokenizerError(f"This model's tokenizer has no language {code!r}. {suggest(code, alike or self.ids)}")
        return self.ids[code]

    def code_of(self, token: int | None) -> str:
        """The language code of a token id, "" for other tokens."""
        return next((code for code, number in self.ids.items() if number == token), "")

    def frame_ids(self, code: str, end: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids before and after a text in a language, or in none (""); `end` is the id of the end token."""
        marks = (self.id_of(code),) if code else ()
        return ((), (end, *marks)) if self.code_last else (marks, (end,))

    def generation_options(self, code: str) -> dict[str, int]:
        """Return the argument of `generate` that makes a decoder write in a language, {} for none ("")."""
        if not code:
            return {}
        return {"decoder_start_token_id" if self.starts_decoder else "forced_bos_token_id": self.id_of(code)}

    def language_of(self, settings: Mapping[str, object]) -> str:
        """The language that a model's generation settings force (see `generation_options`), "" if none."""
        token = settings.get("decoder_start_token_id" if self.starts_decoder else "forced_bos_token_id")
        return self.code_of(token) if isinstance(token, int) else ""


def require_languages(languages: Languages | None, code: str) -> Languages:
    """Return a tokenizer's languages; raise a TokenizerError that names the requested code if it has none."""
    if languages is None:
        raise TokenizerError(
            f"The language {code} was given, but this model's tokenizer has no language codes. Leave the language out."
        )
    return languages
