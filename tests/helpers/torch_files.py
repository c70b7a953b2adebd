"""Two files of PyTorch's torch.save, one in each format."""

# Files of torch.save in PyTorch 2.13, compressed by zlib; the second with _use_new_zipfile_serialization=False:
# {"matrix": arange(6) as float32 [2, 3], "transposed": its .t(), "half": bfloat16 [1.5, -2], "steps": tensor(7)}
GOLDEN_ZIP = (
    "c-p0vNpI6Y6vroa;-m)Bg(Yo)QkFw1l{C&?3Z$}-IT(pFEQ)%G+{BG7+&E)T$|50ELM`g89JnIB0w=Eh3UB}poamu&f+I&}?9{bgC86yolZle~"
    "|KBe&?>(19ItV}{0uGEJFaji_rl_m(OkF}!qV+@*_$XNPj5X>d1n~-k1uGIV)MqeILpqivs%@ldCR;V+rM9Zot4MB|x=~$Cv5<<#D`BiK@lL5B"
    "L)w<Gf~HI8f&C>5gOvc@lZ2rPjn`VM4H=O^FuWiFkrL?*7!hePumJ})Yc*Zd<Qh`-rpewn>aro%@2EAzLUyVQPat@*3{O>9?1BubX|{AzuEVH;"
    "F%((}Dj~%(9wf%JNNvC&F+lu>Hx;5ELGW}Lo~ht-0*a(9!?U)s1I=61T+ZP>XK`~dhHWVXM=joUI3@<x;ka#i9>EJ`c(D?)4nc02aKhtxPj5CH"
    "ze|>13Ql6b0D_mX-_(@ta|OYxWq7TfD2d_7haZz$ukltgOI@!u1~SgICYE&r-&%E5HcWhW0-yBVZvVlN$RB@ye?=I{>>ha><o6?YuD&X1YNNR#"
    "H<7@n4;>tjT!sJ?pTb`h4ng$<7zRZLVCgxMb&@FpKX;V4dqYzZ(qzK0ersoplmXL|AqsALs%j=F@HdVDV7smr@!LFp;kkzA`*}hX+uD6IihmgG"
    "Lp1Fr;siea-$dI*uuWox7Z!I&fdu=+n)k*^3H;6D9RFgt<4hP@Uv_m8G}4n{5X?CYPU7c}3Xx_><WKJ!kNW4|1W4@{fc5uH*-&u>ypTxis;YH?"
    "PaF~?S;)+03WY)@Kby-YGlhIQn@na>xojbuPtS7rGnX%L*)*YiyZc9qV~)5*86dC@r@MI!9U%8V2mESx1BiK)Ujv|9yYZX2i+J2)vOs|zox|_r"
    "F2rGv&u5p9(*XQ(chy8a^2apr)vjObt^%+2r(etYweIZoY99uD+LT}G&c8vA_M1!F<=owAG2s!HL!eK>mPCe`-b-)#x}zNMt#>JV{TtdVSH`N`"
    "Vu!(ga)cOLGhpqv_x=Owfa`G"
)
GOLDEN_LEGACY = (
    "c-n1|%Wl&^6o&1wlYpV6rR7qtrGS)dqQ)|TtXd(|&2TjvZ;)l|Y3<5*d}fX-K&q5YBg!+dV98_jb$A3M797W+T$IsV?BnDAJO7+9`|RXDzwG>2"
    "-~aY<tv_bZzFV{(g3%3@48tguL>bFGJP=A}vH+73f(81LXNb87MUiAt0qj%YP!K<qBGlPOp}{%?yBoA9s8gvBTAT$Iy=4VLo7;h1Ysg{`I^3?R"
    "-^?~e-$kgh_h7~-Rh;(23bR~0p%QPaEKfodg_bHja2;UXZqTU-lo{;_u$o_-om@uvx(Pa92aA+5@`j@a19#-P-sWfst!XiFSy3_V=Lnrw+~AB`"
    "6F9>yZcgCraZJ8*5hK~w&I^?YC6Xsuj1D+GAI>41_hF&2t)fDgQi}u@Qz|O8(z(zJX#-oTVHRf-SmtKUym*|}nkxvaK3tmKO&aC9aJf;N*?K(n"
    "H5i^cyYdIJ>A4RFuIqYml^~2DYg0!@aE+TsaJ>QCK)C6{t)?v~N)5OFAv~pqoT{(?ul{K0!5vaJNqvLVd%Z^WF2X$@?$=FxQ#Wx=QRX}?Ht&us"
    "(Pu_8PPU8_bN1Ysoo(aqG2WtWn<lL>t*_g^0OmNhSO"
)
