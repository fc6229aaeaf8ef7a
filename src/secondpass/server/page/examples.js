// Queries with passages that look alike and answer differently.

export const EXAMPLES = [
  {
    name: "Money back",
    query: "How do I get my money back for a broken item?",
    passages: [
      "Our shop is open from nine to six, except on Sundays.",
      "Money can be withdrawn at the counter until noon.",
      "Items on sale are marked with a red label.",
      "Broken glass belongs into the container for residual waste.",
      "If an item arrives damaged, send us a photo within 30 days and we refund the full price.",
      "Delivery takes two to four working days.",
    ],
  },
  {
    name: "The blue sky",
    query: "Why is the sky blue during the day?",
    passages: [
      "Blue paint was expensive in the Middle Ages, as it was made of lapis lazuli.",
      "The sky over Utah was clear when the aircraft landed.",
      "The committee met during the day to discuss the budget.",
      "Air molecules scatter short blue waves of sunlight more than long red ones, so the daytime sky looks blue.",
      "At dusk the sky turns red and then dark.",
    ],
  },
  {
    name: "The first program",
    query: "Who wrote the first computer program?",
    passages: [
      "The first computer mouse was carved from wood by Bill English in 1964.",
      "Charles Babbage designed the Analytical Engine, a mechanical computer, in 1837.",
      "A computer program is a sequence of instructions that a computer can execute.",
      "Grace Hopper’s team found a moth in the Mark II, the first computer bug on record.",
      "In 1843 Ada Lovelace published an algorithm for the Analytical Engine, which is regarded as the first computer program.",
      "The first program of the evening is a film about computers.",
    ],
  },
  {
    name: "茶: for a multilingual model",
    query: "绿茶应该用多少度的水冲泡？",
    passages: [
      "绿茶产于浙江、安徽和江苏等地，春季采摘的最为名贵。",
      "水在标准大气压下的沸点是一百摄氏度。",
      "冲泡绿茶以八十度左右的水为宜，水温过高会把嫩叶烫熟，使茶汤发黄、味道苦涩。",
      "红茶经过完全发酵，适合用刚烧开的水冲泡。",
      "喝茶有助于提神，但睡前不宜饮用。",
    ],
  },
  {
    name: "قهوة: for a multilingual model",
    query: "كيف أحافظ على نكهة القهوة بعد طحنها؟",
    passages: [
      "تُزرع القهوة في اليمن وإثيوبيا والبرازيل على مرتفعات باردة.",
      "احفظ القهوة المطحونة في وعاء محكم الإغلاق بعيدًا عن الضوء والحرارة، واستعملها خلال أسبوعين.",
      "سعر القهوة ارتفع هذا العام بسبب قلة الأمطار.",
      "طحن الحبوب قبل التحضير مباشرة أفضل ما يحافظ على النكهة، لأن الهواء يُفسد الزيوت العطرية.",
      "تحتوي القهوة على الكافيين الذي ينبّه الجسم.",
    ],
  },
];
